"""Write docs/cli.md, the flags of each command, from the settings in the code; `--check` only compares."""

import sys
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lorafit.cli.completion import SETTINGS
from lorafit.cli.flags import is_word
from lorafit.config import TrainConfig

PAGE = Path(__file__).parents[1] / "docs/cli.md"
HEAD = """# Commands and their flags

Made by `make docs` from the settings in the code; do not edit. Flags take underscores or hyphens. `None` means that the
program chooses, and says why. Exit codes: 0 done, 2 something you can mend, 1 a bug of ours, 128 + number after a signal.
"""
TRAIN = """
Each is a key of a YAML file too (`--config FILE`; flags beside it win). *What* decides what is learned and is kept on
resume; *how* changes only speed, memory and where things lie. `python train.py` and `lorafit resume [RUN]` take the same.
"""


def page() -> str:
    """Return the whole page: one table for each set of flags; commands with the same flags share a table."""
    names: dict[type[BaseModel], list[str]] = {}
    for command, kind in SETTINGS.items():
        names.setdefault(kind, []).append(f"`lorafit {command}`")
    return HEAD + "".join(_section(kind, commands) for kind, commands in names.items())


def _section(kind: type[BaseModel], commands: list[str]) -> str:
    text = f"\n## {', '.join(commands)}\n{TRAIN if kind is TrainConfig else ''}\n"
    columns = ("flag", "default", "kind", "meaning") if kind is TrainConfig else ("flag", "default", "meaning")
    text += f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
    return text + "".join(_row(name, field, kind) for name, field in kind.model_fields.items())


def _row(name: str, field: FieldInfo, kind: type[BaseModel]) -> str:
    flag = name.upper() if is_word(field) else f"--{name}"
    effect = field.json_schema_extra["kind"] if isinstance(field.json_schema_extra, dict) else "how"
    cells = [f"`{flag}`", f"`{field.default}`", *([str(effect)] if kind is TrainConfig else []), str(field.description)]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def main() -> int:
    """Write the page and return 0. With --check, write nothing and return 1 if the page is out of date."""
    if "--check" in sys.argv[1:]:
        return int(not PAGE.is_file() or PAGE.read_text("utf-8") != page())
    PAGE.write_text(page(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
