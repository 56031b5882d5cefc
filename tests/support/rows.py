"""Rows of training data, and their text as CSV."""

import csv
import io

from lorafit.data.readers.row import Row


def rows_of(values: list[object]) -> list[Row]:
    """Return `values` as rows of one file, one row per line."""
    return [Row(value, "f.jsonl", line) for line, value in enumerate(values, 1)]


def questions(count: int) -> list[object]:
    """Return `count` different questions with answers."""
    return [{"question": f"问 {i}", "answer": f"答 {i}"} for i in range(count)]


ROWS = [
    {"instruction": f"问题 {i}，“为什么”？\n说明\\", "output": f'回答 {i} "是"\t😀', "history": [["a", "b"]] * (i % 3)}
    for i in range(20)
]


def as_csv(rows: list[dict[str, str]]) -> str:
    """Return `rows` as CSV text with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
