"""One command for a machine with an NVIDIA GPU: what is right on it, how fast, in how much memory, and what to correct.

    python benchmarks/cuda.py --minutes 8 --json card.jsonl
    python benchmarks/cuda.py --report card.jsonl     # writes docs/cuda.md
    python benchmarks/cuda.py --list-wheels           # packages that add parts, where the machine has no network

Random weights only; nothing is downloaded. Each part runs in a process of its own, the most telling first, and each result
is written at once as a line of JSON, so that a stop at any moment leaves what was measured. Needs torch 2.11 or later,
transformers, peft, numpy and safetensors; parts that need more are left out and say so.
"""

import argparse
import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TextIO

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/cuda.md"
LEAST_SECONDS = 5.0  # a part with less time left is not started
TAIL_CHARACTERS = 300  # of a part's stderr, shown when it fails


@dataclass(frozen=True)
class Part:
    """A part: its name, the function that yields its lines, and the largest share of the remaining time that it may take."""

    name: str
    function: str  # module:function
    share: float


PARTS = (
    Part("facts", "card.facts:lines", 0.15),
    Part("conformance", "card.conformance:lines", 0.25),
    Part("1b", "card.speed:one_billion", 0.45),
    Part("constants", "card.constants:lines", 0.35),
    Part("kernels", "card.kernels:lines", 0.3),
    Part("law", "card.law:lines", 0.4),
    Part("quantized", "card.quantized:lines", 0.4),
    Part("3b", "card.speed:three_billion", 1.0),
)
# Wheels for x86-64 Linux, in MB as the package index gives them; and what each of them adds. multiprocess has a wheel for
# each Python from 3.10 to 3.13, the others have one for all.
WHEELS = (
    ("bitsandbytes==0.50.2", 43.1, "NF4, 8-bit, paged_adamw_8bit, QLoRA"),
    ("trl==1.16.0", 0.9, "TRL as a peer; needs datasets"),
    ("datasets==5.2.0", 0.6, "for TRL"),
    ("multiprocess==0.70.19", 0.2, "for datasets"),
    ("dill==0.4.1", 0.1, "for datasets"),
)


def read_flags(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything (default: 8)")
    parser.add_argument(
        "--json", type=Path, default=Path("card.jsonl"), help="file to append the results to (default: card.jsonl)"
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write docs/cuda.md from these results; nothing is measured"
    )
    parser.add_argument("--page", type=Path, default=PAGE, help="the page that --report writes (default: docs/cuda.md)")
    parser.add_argument("--list-wheels", action="store_true", help="list the packages that add parts, with their sizes")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models: to try the program itself")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="these parts alone")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # this process is the part
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)  # its folder, which it shares with the others
    return parser.parse_args(argv)


def list_wheels() -> None:
    """Print the optional packages with sizes, and the command that brings them."""
    for name, size, adds in WHEELS:
        print(f"{size:6.1f} MB  {name:<24}{adds}")
    print(f"{sum(size for _name, size, _adds in WHEELS):6.1f} MB  in all")
    names = " ".join(name for name, _size, _adds in WHEELS)
    print(
        f"pip download --no-deps --python-version 3.12 --platform manylinux_2_24_x86_64 --only-binary :all: -d wheels {names}"
    )
    print("there: pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=site")


def run_part(flags: argparse.Namespace) -> None:
    """Run one part in this process and print its lines; output of libraries goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path.insert(0, str(ROOT))
    threading.Thread(target=_end_with, args=(os.getppid(), flags.scratch), daemon=True).start()
    from card.settings import Settings

    part = next(part for part in PARTS if part.name == flags.part)
    module, _colon, function = part.function.partition(":")
    settings = Settings(flags.device, flags.tiny, flags.minutes * 60, flags.scratch)
    for line in getattr(importlib.import_module(module), function)(settings):
        print(json.dumps(line), file=out, flush=True)


def _end_with(parent: int, scratch: Path) -> None:
    """End this process soon after its parent, and remove `scratch`: a killed program leaves no part on the device."""
    while os.getppid() == parent:
        time.sleep(1)
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(1)


def run_all(flags: argparse.Namespace) -> int:
    """Run the parts in their order until the time is over. Return 0 if every check is right, else 1."""
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(128 + signal.SIGTERM))  # ends the running part too
    deadline, run = time.monotonic() + flags.minutes * 60, time.strftime("%Y-%m-%dT%H:%M:%S")
    wrong = 0
    with flags.json.open("a", encoding="utf-8") as file, tempfile.TemporaryDirectory(prefix="lorafit-card-") as scratch:
        flags.scratch = Path(scratch)
        _end_torn_line(flags.json, file)
        for part in PARTS:
            if flags.only and part.name not in flags.only:
                continue
            left = deadline - time.monotonic()
            if left < LEAST_SECONDS:
                _write(file, {"run": run, "part": part.name, "error": "not started: the time was over"})
                continue
            wrong += _watch(flags, part, left * part.share, lambda line: _write(file, {"run": run, **line}))
    return int(wrong > 0)


def _end_torn_line(path: Path, file: TextIO) -> None:
    """End the last line of `path`, open as `file`, if an earlier run was stopped in the middle of it."""
    if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        file.write("\n")


def _watch(flags: argparse.Namespace, part: Part, seconds: float, keep: Callable[[dict[str, Any]], None]) -> int:
    """Run `part` for at most `seconds`, `keep` its lines as they come, and return how many of them are wrong."""
    own_flags = ["-S"] if sys.flags.no_site else []
    command = [
        sys.executable,
        *own_flags,
        __file__,
        "--part",
        part.name,
        "--device",
        flags.device,
        "--minutes",
        str(seconds / 60),
        "--scratch",
        str(flags.scratch),
    ]
    began, wrong = time.monotonic(), 0
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [*command, *(["--tiny"] if flags.tiny else [])], stdout=subprocess.PIPE, stderr=errors, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            for line in _lines(process, began + seconds):
                wrong += line.get("ok") is False
                keep({"part": part.name, **line, "at_seconds": round(time.monotonic() - began, 1)})
            why = _why_ended(process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if why:
            errors.seek(0)
            tail = errors.read().decode("utf-8", "replace").strip()[-TAIL_CHARACTERS:].replace("\n", " ")
            keep({"part": part.name, "error": f"{why} {tail}".strip()})
    return wrong + bool(why)


def _lines(process: "subprocess.Popen[str]", deadline: float) -> Any:
    """Yield the lines of JSON that the process prints until it ends or the deadline passes."""
    waiting: SimpleQueue[str | None] = SimpleQueue()
    assert process.stdout is not None
    output = process.stdout

    def read() -> None:
        for text in output:
            waiting.put(text)
        waiting.put(None)

    threading.Thread(target=read, daemon=True).start()
    while (left := deadline - time.monotonic()) > 0:
        try:
            text = waiting.get(timeout=left)
        except Empty:
            return
        if text is None:
            return
        with contextlib.suppress(ValueError):
            yield json.loads(text)


def _why_ended(process: "subprocess.Popen[str]") -> str:
    """Return why the part has no more lines: "" if it is finished."""
    try:
        code = process.wait(timeout=LEAST_SECONDS)
    except subprocess.TimeoutExpired:
        return "stopped: its time was over."
    return "" if code == 0 else f"ended with code {code}."


def _write(file: TextIO, line: dict[str, Any]) -> None:
    """Append one line and make it durable."""
    file.write(json.dumps(line) + "\n")
    file.flush()
    os.fsync(file.fileno())
    with contextlib.suppress(OSError):  # a closed pipe must not end the measurements
        print(json.dumps(line)[:200], flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run what the flags ask for and return the exit code."""
    flags = read_flags(argv)
    if flags.part:
        run_part(flags)
    elif flags.list_wheels:
        list_wheels()
    elif flags.report:
        sys.path.insert(0, str(ROOT))
        from card import report

        flags.page.write_text(report.page(report.read_lines(flags.report)), "utf-8")
    else:
        return run_all(flags)
    return 0


if __name__ == "__main__":
    sys.exit(main())
