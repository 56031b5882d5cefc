"""benchmarks/cuda.py on the CPU with tiny models: its parts, its limits, and the page that it writes. Nothing is timed."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import cuda
from card import fit, report
from lorafit.planner.throughput import HALF_RATE_TOKENS

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


def test_a_broken_line_is_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "card.jsonl"
    path.write_text('{"part": "facts", "what": "copy", "gigabytes_per_second": 4000.0}\n{"part": "1b", "tok')
    page = report.page(report.read_lines(path))
    assert "4000 GB/s" in page
    assert "line 2 of the file is broken" in page
    path.write_bytes(b"\x00\xff no results\n[1]\n")
    with pytest.raises(SystemExit, match="no line written by"):
        report.read_lines(path)


def test_the_page_has_each_part_from_the_last_run_that_started_it() -> None:
    def line(run: str, part: str, **facts: Any) -> dict[str, Any]:
        return {"run": run, "part": part, **facts}

    first = [line("1", "law", what="old", ok=True), line("1", "3b", error="not started: the time was over")]
    second = [line("2", "law", what="new", ok=True), line("2", "facts", error="not started: the time was over")]
    assert report.newest([line("1", "facts", what="kept"), *first, *second]) == [
        line("1", "facts", what="kept"), first[1], second[0],
    ]  # fmt: skip


def passes(flops: float, launch: float) -> list[dict[str, Any]]:
    """Return lines of the part `constants` whose seconds follow from these factors of the planner's terms."""
    lines = []
    for tokens, recompute in ((512, 0), (1024, 0), (4096, 0), (16384, 0), (4096, -1)):
        one = tokens * 1e-5 * (1.5 if recompute else 1.0)
        launches, moved = (48.0 if recompute else 32.0), 0.1 * one
        seconds = flops * one * (1 + HALF_RATE_TOKENS["cuda"] / tokens) + launch * launches + moved
        memory = {"predicted_tensor_bytes": 3000, "layer_bytes": 100, "terms": {"activations": 800, "work": 200}}
        peaks = {"peak_allocated_bytes": 3100, "peak_reserved_bytes": 3200}
        facts = {"tokens": tokens, "recompute": recompute, "chunk": 256, "quantization": "none", "seconds": seconds}
        parts = {"flops_seconds": one, "moved_seconds": moved, "launches": launches, "written_seconds": 0.01}
        lines.append(
            {
                "part": "constants",
                "shape": "llama-3.2-1b",
                "predicted_seconds": one,
                **facts,
                **parts,
                **memory,
                **peaks,
            }
        )
    return lines


def test_the_constants_behind_the_seconds_and_the_bytes_are_found() -> None:
    plain = passes(flops=1.25, launch=0.3e-3)
    packed = [{**plain[2], "quantization": "4bit", "seconds": plain[2]["seconds"] + 0.02}]
    found = {one.name: one.fits for one in fit.constants([*plain, *packed], 600 * 1024**2, "cuda")}
    assert found == {
        "EFFICIENCY": "0.48", "LAUNCH_SECONDS": "0.30 ms", "USEFUL_TOKENS": "16384",
        "UNPACK_SLOWNESS": "2.0", "BASE_BYTES": "600 MiB", "DEVICE_SLACK": "0.10 (largest)", "GENERIC_WORK": "3.0 (3.0 to 3.0)",
    }  # fmt: skip
    assert fit.fitted(passes(flops=2.0, launch=-1e-5), HALF_RATE_TOKENS["cuda"]) == (pytest.approx(2.0, rel=0.1), 0.0)


def test_the_page_of_a_card_has_its_constants_and_says_where_the_fast_path_fails() -> None:
    facts = [
        {"part": "facts", "what": "device", "name": "NVIDIA H200"},
        {"part": "facts", "what": "context", "bytes": 2**29},
    ]
    failed = {"part": "kernels", "what": "fast path", "precision": "bf16", "ok": False, "error": "RuntimeError: dtype",
              "engine_refuses": "not tried", "where": "engines/torch/packed/ops.py:7: y = x @ w"}  # fmt: skip
    page = report.page([*facts, failed, *passes(1.25, 0.3e-3)])
    assert "| `EFFICIENCY` | `planner/throughput.py` | 0.60 | 0.48 | 5 |" in page
    assert "| `BASE_BYTES` | `planner/memory.py` | 700 MiB | 512 MiB | 1 |" in page
    assert "not tried; RuntimeError: dtype; engines/torch/packed/ops.py:7: y = x @ w |" in page
    assert "pass of 4,096 tokens, all layers recompute, loss in chunks of 256" in page


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
        cuda._watch(flags, part, seconds, lambda line: cuda._write(file, line))
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_part_ends_with_the_program_and_what_it_found_stays(tmp_path: Path, number: int) -> None:
    path = tmp_path / "card.jsonl"
    path.write_text('{"part": "facts", "torn')  # by an earlier run
    command = [sys.executable, str(ROOT / "benchmarks/cuda.py"), "--device", "cpu", "--tiny", "--json", str(path)]
    program = subprocess.Popen([*command, "--only", "facts", "law"], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    assert '"what": "device"' in program.stdout.readline()
    (part,) = psutil.Process(program.pid).children()
    program.send_signal(number)
    program.wait(60)
    part.wait(60)
    kept = path.read_text("utf-8").splitlines()
    assert kept[0] == '{"part": "facts", "torn'
    assert json.loads(kept[1])["what"] == "device"


def test_nothing_is_started_without_time(tmp_path: Path) -> None:
    assert cuda.main(["--device", "cpu", "--tiny", "--minutes", "0", "--json", str(tmp_path / "card.jsonl")]) == 0
    assert {line["error"] for line in read(tmp_path / "card.jsonl")} == {"not started: the time was over"}


def test_the_wheels_to_bring_are_at_most_60_megabytes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda.main(["--list-wheels"]) == 0
    assert "pip download" in capsys.readouterr().out
    assert sum(size for _name, size, _adds in cuda.WHEELS) <= 60
