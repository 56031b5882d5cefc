"""Files of results: JSON lines, each appended at once, so that an interrupted race can resume.

A line belongs to a run. It says what the run is `about` (settings, machine, versions), or reports a finished round or a
failure of a `contestant`.
"""

import json
from pathlib import Path
from typing import Any

Line = dict[str, Any]
RESULTS = Path(__file__).parents[1] / "results" / "speed.jsonl"
GROWTH, MLX = RESULTS.with_name("growth.jsonl"), RESULTS.with_name("mlx_speed.jsonl")


def read(path: Path) -> list[Line]:
    """Return all complete lines; an absent file has none."""
    lines = []
    for text in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue  # the write of this line was interrupted
    return lines


def append(path: Path, line: Line) -> None:
    """Append `line` to the file and create its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def of_run(lines: list[Line], run: str) -> list[Line]:
    """Return the lines of one run."""
    return [line for line in lines if line["run"] == run]


def rounds_done(lines: list[Line], name: str) -> int:
    """Return how many rounds `name` has finished, not counting the first step."""
    return sum(line.get("contestant") == name and line.get("round", 0) > 0 for line in lines)
