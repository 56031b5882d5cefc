"""The images in docker/: what their files say, and, where Docker runs, whether the demo trains in the CPU's."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest
from support.paths import ROOT

FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def instructions(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each instruction of a Dockerfile with its arguments."""
    text = re.sub(r"^#.*\n", "", path.read_text("utf-8"), flags=re.M).replace("\\\n", "")
    for line in filter(None, text.splitlines()):
        word, _space, rest = line.partition(" ")
        yield word, rest


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param  # type: ignore[no-any-return]


def test_both_images_exist() -> None:
    assert [path.stem for path in FILES] == ["cpu", "cuda"]


def test_the_base_image_has_an_exact_version(path: Path) -> None:
    (base,) = (rest for word, rest in instructions(path) if word == "FROM")
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base)


def test_the_image_runs_the_demo_as_a_user_of_its_own(path: Path) -> None:
    last = dict(instructions(path))
    assert json.loads(last["ENTRYPOINT"]) == ["lorafit"]
    assert json.loads(last["CMD"]) == ["train", "--demo"]
    assert last["USER"].isdigit()
    assert int(last["USER"]) > 0


def test_runs_and_cache_are_volumes(path: Path) -> None:
    last = dict(instructions(path))
    assert json.loads(last["VOLUME"]) == [last["WORKDIR"], "/cache"]
    assert all(value.startswith("/cache/") for value in re.findall(r"=(\S+)", last["ENV"]))


def test_what_is_copied_exists_and_docker_may_see_it(path: Path) -> None:
    seen = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    copied = {name for word, rest in instructions(path) if word == "COPY" for name in rest.split()[:-1]}
    assert copied == seen
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.slow
def test_the_demo_trains_in_the_cpu_image() -> None:
    if not which("docker") or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no Docker engine runs here")
    build = ["docker", "build", "-q", "-f", "docker/cpu.Dockerfile", "-t", "lorafit:test", "."]
    subprocess.run(build, cwd=ROOT, check=True)
    run = ["docker", "run", "--rm", "--init", "lorafit:test", "train", "--demo", "--max_steps", "2"]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "step 2/2" in done.stdout + done.stderr
