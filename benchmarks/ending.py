"""Report of a benchmark: its figures on the screen and, if wanted, in a file; and its exit code."""

import json
from pathlib import Path
from typing import Any


def report_figures(figures: dict[str, Any], path: Path | None) -> int:
    """Print `figures` as JSON, write them to `path` if given, and return the exit code: 0 if they are `ok`, else 1."""
    text = json.dumps(figures, ensure_ascii=False, indent=1)
    print(text)
    if path:
        path.write_text(text + "\n", "utf-8")
    return 0 if figures["ok"] else 1
