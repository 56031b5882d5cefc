"""The file of --config: its encoding, and its settings, translated if the file is one of another tool."""

import codecs
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lorafit.cli.foreign.hints import fixes
from lorafit.cli.foreign.translate import Translated, recognize, translate_file
from lorafit.config import LARGEST_FILE, TrainConfig, read_yaml
from lorafit.data.text_checks import visible
from lorafit.errors import ConfigError
from lorafit.messages import _, listed
from lorafit.reporters.terminal.columns import show_line, show_rows


def read_config_file(path: Path, console: Console | None = None, data_given: bool = False) -> dict[str, Any]:
    """Return the settings in the file `path`. Raise ConfigError with all its unknown keys.

    `console` shows the encoding, if it is not UTF-8, and the translation of another tool's file. Such a file must name
    its training data, unless `data_given` says that flags do: lorafit's default data are not that tool's.
    """
    encoding = _encoding(path)
    keys = read_yaml(path, encoding)
    if console and not encoding.startswith("utf-8"):
        show_line(
            Text(_("{path}: read as {encoding}, not UTF-8").format(path=path, encoding=encoding.upper())), console
        )
    tool = recognize(keys)
    if tool is not None:
        translated = translate_file(tool, keys, path)
        if console:
            show_translation(translated, path, console)
        if "dataset_name" not in translated.settings and not data_given:
            what = _("This {tool} file names no training data.").format(tool=tool.name)
            raise ConfigError(what, where=path, fix=_("Name the data in the file, or with `--dataset_name`."))
        return translated.settings
    unknown = [key for key in keys if key not in TrainConfig.model_fields]
    if unknown:
        raise ConfigError(
            _("Unknown setting `{name}`.").format(name=unknown[0])
            if len(unknown) == 1
            else _("Unknown settings: {names}.").format(names=listed(f"`{name}`" for name in unknown)),
            where=path,
            fix=fixes(TrainConfig, unknown, keys, _("Run `lorafit train --help` for the list of settings."), ""),
        )
    return keys


def _encoding(path: Path) -> str:
    """Return "utf-16" for a file with its byte-order mark, "gb2312" for a file in GBK, else "utf-8".

    A settings file has too few letters to tell other encodings apart. In GB2312, both bytes of a character are high, so
    that no text in Latin-1 passes by chance.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE)
        if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        text.decode("gb2312")
    except (OSError, UnicodeDecodeError):
        return "utf-8"
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return "gb2312"
    return "utf-8"


def show_translation(translated: Translated, path: Path, console: Console) -> None:
    """Print what each key of another tool's file is here."""
    title = _("{path} is a file of {tool}. Its settings here:").format(path=path, tool=translated.tool)
    show_line(Text(title, "bold"), console)
    head = [_("key"), _("value there"), _("here")]
    rows = [[visible(cell) for cell in row] for row in translated.rows]
    show_rows([[Text(word, "dim") for word in head], *rows], console, fold=True)
    console.print()
