"""Write docs/cli.md and docs/zh/cli.md from the settings in the code, and docs/layout.md from its docstrings.

`--check` writes nothing and fails if a page is out of date.
"""

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from house import ORDER, House
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lorafit.cli.app import COMMANDS
from lorafit.cli.completion import SETTINGS
from lorafit.cli.flags import is_word
from lorafit.config import TrainConfig, is_switch
from lorafit.messages import labelled, listed, set_language, translate

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Words:
    """The words of the page of commands that are not in the code, in one language."""

    head: str
    train: str
    columns: tuple[str, str, str, str]  # flag, default, whether it changes the result, meaning
    yes: str
    no: str
    off: str  # the default of a switch


WORDS = {
    "en": Words(
        head="""# Commands and flags

[中文](zh/cli.md)

This page is made by `make docs` from the settings in the code; do not edit it. `lorafit COMMAND --help` shows the same.

- Flags take underscores or hyphens: `--max_length` and `--max-length` are the same flag.
- A switch (default: off) takes no value; `--no_FLAG` turns it off again.
- A default in words, such as "automatic", applies if the flag is not given. An empty default: nothing is set.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a bug in lorafit, shown with its traceback |
| 2 | a problem that you can fix; the message says how |
| 128 + number | ended by a signal, e.g. 130 after Ctrl-C and 143 after SIGTERM |
""",
        train="""
`python train.py` takes the same flags. Each flag is also a key of a settings file in YAML (`--config FILE`); flags on the command
line take precedence over the file.

The third column says whether a setting changes the result, i.e. what the model learns. Such settings are kept when a run is
resumed. The others change only speed, memory, and where files are; they may differ from one session to the next.
""",
        columns=("flag", "default", "changes the result", "meaning"),
        yes="yes",
        no="no",
        off="off",
    ),
    "zh": Words(
        head="""# 命令与参数

[English](../cli.md)

本页由 `make docs` 根据代码中的参数生成，请勿手工修改。`lorafit 命令 --help` 显示同样的内容。

- 参数名用下划线或连字符均可：`--max_length` 与 `--max-length` 相同。
- 开关（默认为“关”）不带值；`--no_参数名` 把它重新关上。
- 默认值一栏是文字（如“自动”）时，表示不填该参数时的做法；空白表示不设置。

| 退出码 | 含义 |
|---|---|
| 0 | 完成 |
| 1 | lorafit 的程序缺陷，会附上堆栈 |
| 2 | 你可以解决的问题，提示中有解决办法 |
| 128 + 信号编号 | 因信号结束，如 Ctrl-C 后为 130，SIGTERM 后为 143 |
""",
        train="""
`python train.py` 接受同样的参数。每个参数也可以写进 YAML 设置文件（`--config FILE`），键名与参数名相同；命令行上的参数优先。

第三栏说明参数是否影响结果，即模型学到什么。影响结果的参数在继续训练时保持不变；其余参数只影响速度、内存和文件位置，每次可以不同。
""",
        columns=("参数", "默认值", "影响结果", "含义"),
        yes="是",
        no="否",
        off="关",
    ),
}
# A default in words stands in the help text, and in the column of defaults here.
DEFAULT_IN_WORDS = re.compile(r" ?[(（](?:default: |不填：)([^)）]*)[)）]")

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


def cli_page(language: str) -> str:
    """Return the page of commands in `language`: one table for each set of flags; commands with the same flags share it."""
    set_language(language)
    words = WORDS[language]
    names: dict[type[BaseModel], list[str]] = {}
    for command, kind in SETTINGS.items():
        names.setdefault(kind, []).append(command)
    return words.head + "".join(_section(kind, commands, words) for kind, commands in names.items())


def _section(kind: type[BaseModel], commands: list[str], words: Words) -> str:
    text = f"\n## {listed(f'`lorafit {command}`' for command in commands)}\n\n"
    about = [
        (f"`lorafit {command}`", COMMANDS[command].help().replace("`", ""))
        for command in commands
        if command in COMMANDS
    ]
    text += "".join(f"- {labelled(command, does)}\n" for command, does in about)
    text += words.train if kind is TrainConfig else ""
    columns = words.columns if kind is TrainConfig else (*words.columns[:2], words.columns[3])
    text += f"{chr(10) if about else ''}| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
    return text + "".join(_row(name, field, words, kind is TrainConfig) for name, field in kind.model_fields.items())


def _row(name: str, field: FieldInfo, words: Words, with_kind: bool) -> str:
    """Return the row of a flag, with a cell for its kind if `with_kind`."""
    flag = name.upper() if is_word(field) else f"--{name}"
    meaning = translate(field.description or "")
    default = "" if field.default in (None, []) else f"`{field.default}`"
    if is_switch(field):
        default = words.off
    elif not default and (found := DEFAULT_IN_WORDS.search(meaning)):
        default, meaning = found[1], DEFAULT_IN_WORDS.sub("", meaning)
    is_what = isinstance(field.json_schema_extra, dict) and field.json_schema_extra["kind"] == "what"
    cells = [f"`{flag}`", default, *([words.yes if is_what else words.no] if with_kind else []), meaning]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def main() -> int:
    """Write the pages and return 0. With --check, write nothing and return 1 if one is out of date."""
    pages = {
        ROOT / "docs/cli.md": cli_page("en"),
        ROOT / "docs/zh/cli.md": cli_page("zh"),
        ROOT / "docs/layout.md": layout_page(),
    }
    if "--check" in sys.argv[1:]:
        return int(any(not path.is_file() or path.read_text("utf-8") != text for path, text in pages.items()))
    for path, text in pages.items():
        path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
