"""benchmarks/cuda.py on the CPU with tiny models: its parts, its limits, and the page that it writes. Nothing is timed."""

import json
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import cuda
from card import report

# Not on the machines that the benchmark is for.
ABSENT = ("pydantic", "tyro", "datasets", "trl", "bitsandbytes", "pytest")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The lines of a whole tiny run, in a Python without the ABSENT packages."""
    folder = tmp_path_factory.mktemp("cuda")
    site = folder / "site"
    site.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith(ABSENT) and not entry.name.endswith(".pth"):
            (site / entry.name).symlink_to(entry)
    command = [sys.executable, "-S", str(ROOT / "benchmarks/cuda.py"), "--device", "cpu", "--tiny", "--minutes", "8"]
    environ = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([*command, "--json", str(folder / "card.jsonl")], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return read(folder / "card.jsonl")


def test_every_part_gives_lines_and_every_check_is_right(lines: list[dict[str, Any]]) -> None:
    assert {line["part"] for line in lines} == {part.name for part in cuda.PARTS}
    assert [line for line in lines if "error" in line or line.get("ok") is False] == []
    for part, least in (("facts", 3), ("conformance", 4), ("law", 6), ("kernels", 1)):
        assert sum(line.get("ok") is True for line in lines if line["part"] == part) >= least


def test_lorafit_is_measured_beside_the_trainer(lines: list[dict[str, Any]]) -> None:
    for shape in ("llama-3.2-1b", "llama-3.2-3b"):
        timed = {line["who"] for line in lines if line.get("shape") == shape and "tokens_per_second" in line}
        assert timed >= {"lorafit", "Trainer, whole step padded", "Trainer, 4 sorted samples", "lorafit, again"}


def test_what_lacks_a_package_is_left_out_with_a_word(lines: list[dict[str, Any]]) -> None:
    words = {(line["part"], line["left_out"]) for line in lines if "left_out" in line}
    assert ("quantized", "not installed: bitsandbytes") in words
    assert ("1b", "not installed: trl, datasets") in words


def test_the_page_has_the_card_the_checks_the_speed_and_the_constants(lines: list[dict[str, Any]]) -> None:
    page = report.page(lines)
    for title in ("The card", "What is right", "Speed and memory", "The planner's constants", "Left out"):
        assert f"\n## {title}" in page
    assert "**wrong**" not in page


def test_the_page_shows_a_wrong_check_and_a_part_that_was_stopped(lines: list[dict[str, Any]]) -> None:
    wrong = {"part": "law", "what": "both", "precision": "bf16", "loss_error": 0.5, "b_error": 0.1, "ok": False}
    page = report.page([*lines, wrong, {"part": "3b", "error": "stopped: its time was over."}])
    assert "| law | both, bf16 | **wrong** | loss_error 5.0e-01; b_error 1.0e-01 |" in page
    assert "stopped: its time was over." in page


def test_a_file_with_a_broken_line_is_refused_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "card.jsonl").write_text('{"part": "facts"}\n{"part": \n')
    with pytest.raises(SystemExit, match=r"card\.jsonl:2: not a line written by"):
        report.read_lines(tmp_path / "card.jsonl")


def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, seconds: float) -> list[dict[str, Any]]:
    """Run a part whose module is `code`, and return its lines."""
    (tmp_path / "own_part.py").write_text(
        f"import os, time\ndef lines(settings):\n    yield {{'what': 1}}\n    {code}\n"
    )
    part = cuda.Part("own", "own_part:lines", 1.0)
    (tmp_path / "run.py").write_text(
        f"import sys; sys.path[:0] = [{str(ROOT / 'benchmarks')!r}, {str(tmp_path)!r}]\n"
        f"import cuda; cuda.PARTS = (cuda.{part!r},); sys.exit(cuda.main())\n"
    )
    monkeypatch.setattr(cuda, "__file__", str(tmp_path / "run.py"))  # the program that a part's process runs
    flags = cuda.read_flags(["--device", "cpu", "--tiny"])
    with (tmp_path / "out.jsonl").open("a") as file:
        cuda._watch(flags, part, seconds, file)
    return read(tmp_path / "out.jsonl")


def test_a_part_that_hangs_is_stopped_and_its_lines_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    first, last = watch(tmp_path, monkeypatch, "time.sleep(600)", 15)
    assert first["what"] == 1
    assert last["error"].startswith("stopped: its time was over.")
    assert time.monotonic() - began < 300


def test_a_part_that_dies_leaves_its_lines_and_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, last = watch(tmp_path, monkeypatch, "raise RuntimeError('of the card')", 60)
    assert first["what"] == 1
    assert last["error"].startswith("ended with code 1.")
    assert "of the card" in last["error"]


def test_nothing_is_started_without_time(tmp_path: Path) -> None:
    assert cuda.main(["--device", "cpu", "--tiny", "--minutes", "0", "--json", str(tmp_path / "card.jsonl")]) == 0
    assert {line["error"] for line in read(tmp_path / "card.jsonl")} == {"not started: the time was over"}


def test_the_wheels_to_bring_are_at_most_60_megabytes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda.main(["--list-wheels"]) == 0
    assert "pip download" in capsys.readouterr().out
    assert sum(size for _name, size, _adds in cuda.WHEELS) <= 60
