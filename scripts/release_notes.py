"""Print the section of CHANGELOG.md for a version: python scripts/release_notes.py 0.2.0"""

import re
import sys
from pathlib import Path

CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"


def section(text: str, version: str) -> str:
    """Return the section of `version` without its heading. Raise LookupError if the changelog has none."""
    found = re.search(rf"^## \[{re.escape(version)}\] [^\n]*\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    if found is None or not found[1].strip():
        raise LookupError(f"CHANGELOG.md has no section for {version}")
    return found[1].strip() + "\n"


if __name__ == "__main__":
    print(section(CHANGELOG.read_text("utf-8"), sys.argv[1]), end="")
