"""Where do results stand? One JSON line a fact, appended at once, so that a race broken off goes on from there.

A line belongs to a run: `about` it (settings, machine, versions), or a `contestant`'s round, failure or absence.
"""

import json
from pathlib import Path
from typing import Any

Line = dict[str, Any]
RESULTS = Path(__file__).parents[1] / "results" / "speed.jsonl"
GROWTH, MLX = RESULTS.with_name("growth.jsonl"), RESULTS.with_name("mlx_speed.jsonl")


def read(path: Path) -> list[Line]:
    """All whole lines."""
    lines = []
    for text in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue  # torn
    return lines


def append(path: Path, line: Line) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def of_run(lines: list[Line], run: str) -> list[Line]:
    return [line for line in lines if line["run"] == run]


def rounds_done(lines: list[Line], name: str) -> int:
    """Rounds that `name` has finished, the first step apart."""
    return sum(line.get("contestant") == name and line.get("round", 0) > 0 for line in lines)
