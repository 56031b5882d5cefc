"""The page docs/cuda.md from the lines of a run: the card, what is right, the speed beside the peers, and the constants."""

import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from card.settings import Line
from lorafit.planner.throughput import EFFICIENCY
from lorafit.units import GIB

Cells = list[Any]

HEAD = """# On an NVIDIA GPU

Made by `python benchmarks/cuda.py --report FILE` from one run; random weights in the shapes of real models. Each part ran in a
process of its own. A part that did not finish, or lacked a package, says so.
"""
TOLD = ("what", "case", "family", "shape", "rows", "who", "precision")


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a result file. Raises SystemExit, with the line's number, for a line that is not an object of JSON."""
    lines = []
    for number, text in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or "part" not in line:
            raise SystemExit(f"{path}:{number}: not a line written by benchmarks/cuda.py: {text[:80]}")
        lines.append(line)
    return lines


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
            rows += [[name, line[name]] for name in ("name", "capability", "torch", "cuda", "python") if line.get(name)]
            if "memory_bytes" in line:
                rows.append(["memory", f"{line['memory_bytes'] / GIB:.1f} GiB"])
        elif line.get("what") == "matmul":
            rows.append([f"matmul {line['precision']}, {line['size']} wide", f"{line['teraflops']:.3g} TFLOP/s"])
        elif line.get("what") == "copy":
            rows.append(["copy, read and written", f"{line['gigabytes_per_second']:.4g} GB/s"])
    return "## The card\n\n" + table(["", "found"], rows) if rows else ""


def _right(lines: list[Line]) -> str:
    rows = []
    for line in lines:
        if "ok" in line and line["part"] not in ("1b", "3b"):
            what = ", ".join(str(line[name]) for name in TOLD if name in line)
            errors = [f"{name} {line[name]:.1e}" for name in line if name.endswith(("_error", "error_by_norm"))]
            rows.append(
                [line["part"], what, "right" if line["ok"] else "**wrong**", "; ".join(errors) or line.get("error", "")]
            )
    good = sum(row[2] == "right" for row in rows)
    head = f"## What is right\n\n{good} of {len(rows)} checks. Errors are relative, by norm.\n\n"
    return head + table(["part", "check", "", "errors"], rows) if rows else ""


def _speed(lines: list[Line]) -> str:
    text = ""
    for shape, rows in dict.fromkeys((line.get("shape"), line.get("rows")) for line in _of(lines, "1b", "3b")):
        own = [line for line in _of(lines, "1b", "3b") if (line.get("shape"), line.get("rows")) == (shape, rows)]
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
                line.get("attention", ""),
            ]
            for line in timed
        ]
        head = ["", "tokens/s, median (range)", "to lorafit", "MFU", "peak allocated", "peak reserved", "attention"]
        text += f"\n### {shape}, {rows} rows, {first['precision']}\n\n" + table(head, cells)
    return "## Speed and memory beside the peers\n" + text if text else ""


def _gib(size: float | None) -> str:
    return "" if size is None else f"{size / GIB:.2f} GiB"


def _constants(lines: list[Line]) -> str:
    """The planner's predictions over the measured figures, and the efficiency that would make them equal."""
    found = [line for line in _of(lines, "1b", "3b") if "speed_factor" in line]
    if not found:
        return ""
    rows = [
        [
            line["shape"], line["rows"], line["who"], f"{line['predicted_step_seconds']:.3f} s", f"{line['step_seconds']:.3f} s",
            _gib(line["predicted_peak_bytes"]), _gib(line["peak_allocated_bytes"]), _signed(line.get("memory_difference_bytes")),
        ]
        for line in found
    ]  # fmt: skip
    share = EFFICIENCY["torch", "cuda"] * statistics.median(line["speed_factor"] for line in found)
    fit = f'\n`EFFICIENCY["torch", "cuda"]` in `planner/throughput.py` is {EFFICIENCY["torch", "cuda"]:.2f}; the median of these '
    head = ["model", "rows", "", "step predicted", "measured", "peak predicted", "measured", "difference"]
    return "## The planner's constants\n\n" + table(head, rows) + fit + f"runs gives {share:.2f}.\n"


def _signed(size: float | None) -> str:
    return "" if size is None else f"{size / GIB:+.2f} GiB"


def _left_out(lines: list[Line]) -> str:
    told: Callable[[Line], str] = lambda line: ", ".join(str(line[name]) for name in TOLD if name in line)  # noqa: E731
    rows = [[line["part"], told(line), line["left_out"]] for line in lines if "left_out" in line]
    rows += [
        [line["part"], told(line), line["error"]] for line in lines if "error" in line and line.get("ok") is not False
    ]
    rows += [[line["part"], told(line), line["error"]] for line in _of(lines, "1b", "3b") if line.get("ok") is False]
    return "## Left out, or not finished\n\n" + table(["part", "", "why"], rows) if rows else ""
