"""Write docs/cli.md from the settings in the code, and docs/layout.md from its docstrings; `--check` only compares."""

import ast
import sys
from pathlib import Path

from house import ORDER, House
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lorafit.cli.completion import SETTINGS
from lorafit.cli.flags import is_word
from lorafit.config import TrainConfig

ROOT = Path(__file__).parents[1]
HEAD = """# Commands and their flags

Made by `make docs` from the settings in the code; do not edit. Flags take underscores or hyphens. `None` means that the
program chooses, and says why. Exit codes: 0 done, 2 something you can mend, 1 a bug of ours, 128 + number after a signal.
"""
TRAIN = """
Each is a key of a YAML file too (`--config FILE`; flags beside it win). *What* decides what is learned and is kept on
resume; *how* changes only speed, memory and where things lie. `python train.py` and `lorafit resume [RUN]` take the same.
"""

LAYOUT = """# The layout of the code

Made by `make docs` from the first line of each module's docstring; do not edit.

**The rule.** A package is a noun of the field. A file goes where its subject is, not its caller. A package imports only from
itself and from the packages below it in this page; `tests/structure/test_house.py` refuses an import upward, and a new module
at the root. No package has the name of a public function of `lorafit` (`plan`, `train`, `runs`, `doctor`, `compare`, `data_report`):
importing a submodule sets the attribute of its package, and the second `lorafit.plan()` would call a module. Tensor libraries are
imported in `engines/` only. `python scripts/house.py` measures all of this.

`api.py` stands between `cli/` and `reporters/`; the other files directly in `lorafit/` stand below `distributed/`.
"""


def layout_page() -> str:
    """Return docs/layout.md: the packages from the highest to the lowest, with a line for each of their modules."""
    house = House(ROOT)
    text = LAYOUT
    for name in ORDER:
        files = [path for path in house.files if house.room(path).split("/")[0] == name]
        folders = sorted({path.parent for path in files})
        for folder in folders if (house.package / name).is_dir() else []:
            own = [path for path in files if path.parent == folder and path.name != "__init__.py"]
            text += f"\n## `{folder.relative_to(house.package).as_posix()}/`\n\n{_first_line(folder / '__init__.py')}\n"
            text += "\n| module | what is in it |\n|---|---|\n" if own else ""
            text += "".join(f"| `{path.name}` | {_first_line(path)} |\n" for path in own)
    text += (
        "\n## Files directly in `lorafit/`, from the highest to the lowest\n\n| module | what is in it |\n|---|---|\n"
    )
    at_root = {house.room(path): path for path in house.files if path.parent == house.package}
    return text + "".join(f"| `{name}.py` | {_first_line(at_root[name])} |\n" for name in ORDER if name in at_root)


def _first_line(path: Path) -> str:
    """Return the first paragraph of the docstring of `path`, on one line of a table."""
    paragraph = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n\n")[0]
    return " ".join(paragraph.split()).replace("|", "\\|")


def cli_page() -> str:
    """Return docs/cli.md: one table for each set of flags; commands with the same flags share a table."""
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
    """Write the pages and return 0. With --check, write nothing and return 1 if one is out of date."""
    pages = {ROOT / "docs/cli.md": cli_page(), ROOT / "docs/layout.md": layout_page()}
    if "--check" in sys.argv[1:]:
        return int(any(not path.is_file() or path.read_text("utf-8") != text for path, text in pages.items()))
    for path, text in pages.items():
        path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
