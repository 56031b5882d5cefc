"""Tables in the docs: each stands between two marks in a page of docs/, and the text around it stays."""

import re
from pathlib import Path

from accuracy.figures import Row, error, speed_error
from lorafit.units import bytes_text

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- measured: {name} -->", "<!-- end -->"


def write(page: str, name: str, text: str) -> None:
    """Replace the text between the marks of `name` in `page`. Raises ValueError if the page has no such marks."""
    path, begin = DOCS / page, BEGIN.format(name=name)
    content = path.read_text("utf-8")
    marked = re.compile(re.escape(begin) + r".*?" + re.escape(END), re.S)
    if not marked.search(content):
        raise ValueError(f"{page} has no place for {name}")
    path.write_text(marked.sub(lambda _match: f"{begin}\n\n{text}\n\n{END}", content), "utf-8")


def memory_table(rows: list[Row]) -> str:
    """Return the Markdown table of predicted and measured peak memory."""
    head = "| model | precision | longest | budget | recompute | rank | allocator | predicted | measured | error |\n|---|---|---|---|---|---|---|---|---|---|\n"
    return head + "\n".join(_memory_row(row) for row in rows)


def _memory_row(row: Row) -> str:
    numbers = row["precision"] if row["quantization"] == "none" else row["quantization"]
    cells = [
        row["model"], numbers, row["longest"], row["token_budget"], f"{row['recompute']:.0%}", row["lora_r"],
        row["allocator"], bytes_text(row["predicted_bytes"]), bytes_text(row["peak_bytes"]), f"{error(row):+.1%}",
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def speed_table(rows: list[Row]) -> str:
    """Return the Markdown table of predicted and measured step times."""
    head = (
        "| model | precision | budget | recompute | allocator | predicted | measured | by the clock | normalized |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(_speed_row(row) for row in rows if speed_error(row) is not None)


def _speed_row(row: Row) -> str:
    numbers = row["precision"] if row["quantization"] == "none" else row["quantization"]
    predicted, seconds = row["predicted_step_seconds"], row["step_seconds"][1:]
    took = sum(seconds) / len(seconds)
    cells = [
        row["model"], numbers, row["token_budget"], _share(row), row["allocator"], f"{predicted:.1f} s", f"{took:.1f} s",
        f"{predicted / took - 1:+.0%}", f"{speed_error(row):+.0%}",
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def run_table(rows: list[Row]) -> str:
    """Return the Markdown table of whole runs: predicted and measured time and memory."""
    head = (
        "| longest | budget | recompute | rank | predicted | measured | by the clock | normalized | memory predicted | memory measured | error |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(_run_row(row) for row in rows if speed_error(row) is not None)


def _run_row(row: Row) -> str:
    predicted, took = row["predicted_seconds"], row["whole_seconds"]
    cells = [
        row["longest"], row["token_budget"] or f"auto, {row['planned']['token_budget']}", _share(row), row["lora_r"],
        f"{predicted:.0f} s", f"{took:.0f} s", f"{predicted / took - 1:+.1%}", f"{speed_error(row):+.1%}",
        bytes_text(row["predicted_bytes"]), bytes_text(row["peak_bytes"]), f"{error(row):+.1%}",
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _share(row: Row) -> str:
    """Return the requested share of layers with gradient checkpointing."""
    return "auto" if row["recompute"] is None else f"{row['recompute']:.0%}"


def limit_table(rows: list[Row]) -> str:
    """Return the Markdown table of runs under memory limits."""
    head = "| model | limit | what happened |\n|---|---|---|\n"
    return head + "\n".join(f"| {r['model']} | {r['limit_gib']} GiB | {_outcome(r)} |" for r in rows)


def _outcome(row: Row) -> str:
    if "error" in row:
        return f"refused: {row['error']} {(row['fix'] or '').splitlines()[0]}"
    how = ", ".join(f"{name} {value}" for name, value in row["planned"].items())
    return f"completed ({how}), peak {bytes_text(row['peak_bytes'])}"
