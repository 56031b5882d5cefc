"""How does a benchmark end? With its flat figures on the screen, in a file where one is wanted, and in its exit code."""

import json
from pathlib import Path
from typing import Any


def conclude(figures: dict[str, Any], path: Path | None) -> int:
    """Print `figures`, write them to `path` where there is one; the exit code: 0 where they are `ok`."""
    text = json.dumps(figures, ensure_ascii=False, indent=1)
    print(text)
    if path:
        path.write_text(text + "\n", "utf-8")
    return 0 if figures["ok"] else 1
