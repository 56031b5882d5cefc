"""The page docs/cuda.md from the lines of a run: the card, what is right, the speed beside the peers, and the constants."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from card import fit
from card.settings import Line
from lorafit.units import GIB

Cells = list[Any]

HEAD = """# On an NVIDIA GPU

Made by `python benchmarks/cuda.py --report FILE`; random weights in the shapes of real models. Each part ran in a process of
its own. A part that did not finish, or lacked a package, says so.
"""
DEVICE_FACTS = (
    "name", "capability", "torch", "cuda", "python", "transformers", "peft", "accelerate", "trl", "bitsandbytes",
)  # fmt: skip
RACES, PASSES = ("1b", "3b"), "constants"
BROKEN, NOT_STARTED = "file", "not started"
TOLD = ("what", "case", "family", "shape", "rows", "who", "precision", "quantization", "tokens")


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a result file; a broken one, where a run was stopped, becomes an error that names its number.

    Raises SystemExit if no line was written by benchmarks/cuda.py.
    """
    lines: list[Line] = []
    for number, text in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        good = isinstance(line, dict) and isinstance(line.get("part"), str)
        lines.append(line if good else {"part": BROKEN, "error": f"line {number} of the file is broken"})
    if all(line["part"] == BROKEN for line in lines):
        raise SystemExit(f"{path}: no line written by benchmarks/cuda.py")
    return newest(lines)


def newest(lines: list[Line]) -> list[Line]:
    """Return the lines of each part from the last run that started it, so that a second run may repeat single parts."""
    last = {line["part"]: line.get("run") for line in lines if not str(line.get("error", "")).startswith(NOT_STARTED)}
    return [line for line in lines if line.get("run") == last.get(line["part"], line.get("run"))]


def page(lines: list[Line]) -> str:
    """Return the whole page."""
    parts = [HEAD, _card(lines), _right(lines), _speed(lines), _constants(lines), _left_out(lines)]
    return "\n".join(part for part in parts if part)


def table(head: Cells, rows: list[Cells]) -> str:
    """Return a Markdown table, "" without rows."""
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def _of(lines: list[Line], *parts: str) -> Iterator[Line]:
    return (line for line in lines if line["part"] in parts)


def _card(lines: list[Line]) -> str:
    rows: list[Cells] = []
    for line in _of(lines, "facts"):
        if line.get("what") == "device":
            rows += [[name, line[name]] for name in DEVICE_FACTS if line.get(name)]
            if "memory_bytes" in line:
                rows.append(["memory", f"{line['memory_bytes'] / GIB:.1f} GiB"])
        elif line.get("what") == "matmul":
            rows.append([f"matmul {line['precision']}, {line['size']} wide", f"{line['teraflops']:.3g} TFLOP/s"])
        elif line.get("what") == "copy":
            rows.append(["copy, read and written", f"{line['gigabytes_per_second']:.4g} GB/s"])
        elif line.get("what") == "context":
            rows.append(["memory that no tensor takes, after matmuls", _gib(line["bytes"])])
    return "## The card\n\n" + table(["", "found"], rows) if rows else ""


def _right(lines: list[Line]) -> str:
    rows = []
    for line in lines:
        if "ok" in line and line["part"] not in (*RACES, PASSES):
            what = ", ".join(str(line[name]) for name in TOLD if name in line)
            rows.append([line["part"], what, "right" if line["ok"] else "**wrong**", "; ".join(_found(line))])
    for line in _of(lines, *RACES):
        if "same_bits" in line:
            what = f"{line['shape']}, {line['rows']} rows, {line['precision']}: the same training twice"
            rows.append([line["part"], what, "equal bits" if line["same_bits"] else "other bits", ""])
    good = sum(row[2] == "right" for row in rows)
    bad = sum(row[2] == "**wrong**" for row in rows)
    head = f"## What is right\n\n{good} of {good + bad} checks. Errors are relative, by norm.\n\n"
    return head + table(["part", "check", "", "errors"], rows) if rows else ""


def _found(line: Line) -> Iterator[str]:
    """Yield the errors of a check, why the engine would not compute it so, and the place of an exception."""
    yield from (f"{name} {line[name]:.1e}" for name in line if name.endswith(("_error", "error_by_norm")))
    if line.get("engine_refuses"):
        yield f"the engine does not take it: {line['engine_refuses']}"
    yield from (str(line[name]) for name in ("error", "where") if line.get(name))


def _speed(lines: list[Line]) -> str:
    text = ""
    for shape, rows in dict.fromkeys((line.get("shape"), line.get("rows")) for line in _of(lines, *RACES)):
        own = [line for line in _of(lines, *RACES) if (line.get("shape"), line.get("rows")) == (shape, rows)]
        timed = [line for line in own if "tokens_per_second" in line]
        first = next((line for line in timed if line["who"] == "lorafit"), None)
        if first is None:
            continue
        cells = [
            [
                line["who"],
                f"{line['tokens_per_second']:,.0f} ({line['slowest']:,.0f} to {line['fastest']:,.0f})",
                f"{line['tokens_per_second'] / first['tokens_per_second']:.2f}",
                f"{line['mfu']:.0%}" if "mfu" in line else "",
                _gib(line["peak_allocated_bytes"]),
                _gib(line["peak_reserved_bytes"]),
                ", ".join(filter(None, (line.get("attention"), "recompute" if line.get("recompute") else ""))),
            ]
            for line in timed
        ]
        head = ["", "tokens/s, median (range)", "to lorafit", "MFU", "peak allocated", "peak reserved", "how"]
        text += f"\n### {shape}, {rows} rows, {first['precision']}\n\n" + table(head, cells)
    return "## Speed and memory beside the peers\n" + text if text else ""


def _gib(size: float | None) -> str:
    return "" if size is None else f"{size / GIB:.2f} GiB"


def _constants(lines: list[Line]) -> str:
    """The planner's predictions beside the measured figures, and the constants that would fit."""
    races = [line for line in _of(lines, *RACES) if "predicted_step_seconds" in line]
    passes = [line for line in _of(lines, PASSES) if "seconds" in line]
    rows = [
        [
            line["shape"], f"{line['rows']}, {line['who']}", f"{line['predicted_step_seconds']:.3f} s",
            f"{line['step_seconds']:.3f} s", *_memory(line),
        ]
        for line in races
    ]  # fmt: skip
    rows += [
        [
            line["shape"], _layout(line), f"{line['predicted_seconds']:.3f} s", f"{line['seconds']:.3f} s", *_memory(line),
        ]
        for line in passes
    ]  # fmt: skip
    if not rows:
        return ""
    head = ["model", "training", "predicted", "measured", "tensors predicted", "measured", "reserved"]
    text = "## The planner's constants\n\nSeconds of a step, or of one forward and backward pass.\n\n" + table(
        head, rows
    )
    return text + _fits(lines, passes)


def _fits(lines: list[Line], passes: list[Line]) -> str:
    """Return the table of the constants that would fit; the constants are those of the device of the run."""
    context = next((line["bytes"] for line in _of(lines, "facts") if line.get("what") == "context"), None)
    name = next((line.get("name") for line in _of(lines, "facts") if line.get("what") == "device"), None)
    device = "cpu" if name == "CPU" else "cuda"
    rows: list[Cells] = [
        [f"`{one.name}`", f"`planner/{one.file}`", one.now, one.fits, one.lines]
        for one in fit.constants(passes, context, device)
    ]
    return "\n" + table(["constant", "in", "now", "fits", "from"], rows) if rows else ""


def _layout(line: Line) -> str:
    recompute = {0: "", -1: ", all layers recompute", -2: ", half of the layers recompute"}[line["recompute"]]
    base = "" if line["quantization"] == "none" else f", {line['quantization']}"
    return f"pass of {line['tokens']:,} tokens{base}{recompute}, loss in chunks of {line['chunk']}"


def _memory(line: Line) -> Cells:
    return [_gib(line[name]) for name in ("predicted_tensor_bytes", "peak_allocated_bytes", "peak_reserved_bytes")]


def _left_out(lines: list[Line]) -> str:
    told: Callable[[Line], str] = lambda line: ", ".join(str(line[name]) for name in TOLD if name in line)  # noqa: E731
    rows = [[line["part"], told(line), line["left_out"]] for line in lines if "left_out" in line]
    rows += [
        [line["part"], told(line), line["error"]] for line in lines if "error" in line and line.get("ok") is not False
    ]
    apart = (line for line in _of(lines, *RACES, PASSES) if line.get("ok") is False and "error" in line)
    rows += [[line["part"], told(line), line["error"]] for line in apart]
    return "## Left out, or not finished\n\n" + table(["part", "", "why"], rows) if rows else ""
