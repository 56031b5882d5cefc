"""The text of `lorafit COMMAND --help`: each flag with its meaning, in the user's language, wrapped to the terminal."""

from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from lorafit.cli.flags import is_word
from lorafit.config import TrainConfig, choices, is_switch, sections, without_none
from lorafit.messages import _, labelled, translate

WORDS = {
    "runs": "RUN",
    "run": "RUN",
    "folder": "DIR",
    "adapter": "RUN",
    "adapters": "RUN",
    "files": "FILE",
    "words": "PLATFORM [RUN]",
}
INDENT, COLUMN = 2, 28  # cells before a flag and before its meaning; the meaning of a longer flag is below it


def show_help(settings: BaseModel, command: str, about: str, console: Console, more: str = "") -> None:
    """Print the help of `command`: `about`, the fields of `settings` as its flags, and the sentence `more`."""
    fields = dict(sorted(type(settings).model_fields.items(), key=lambda item: not is_word(item[1])))
    words = "".join(f" [{WORDS.get(name, name.upper())}]" for name, field in fields.items() if is_word(field))
    if command == "resume":  # it gives its word to --resume
        words = " [RUN]"
    title = Text(labelled(f"lorafit {command}", about) + "\n")
    title.stylize("bold", 0, len(f"lorafit {command}"))
    _print_wrapped(title, console)
    console.print(Text(_("usage: {usage} [flags]").format(usage=f"lorafit {command}{words}")))
    titles = sections() if isinstance(settings, TrainConfig) else {next(iter(fields)): _("Flags")}
    for name, field in fields.items():
        if name in titles:
            console.print(Text(f"\n{titles[name]}", "bold"))
        meaning = _meaning(field, getattr(settings, name))
        console.print(*_lines(_flag(name, field), meaning, console), sep="\n")
    if more:
        _print_wrapped(Text("\n" + more), console)
    console.print(Text("\n" + _("Underscores and hyphens are equivalent; --no_FLAG turns a switch off.")))


def _print_wrapped(text: Text, console: Console) -> None:
    for line in text.wrap(console, console.width):
        line.rstrip()
        console.print(line)


def _flag(name: str, field: FieldInfo) -> Text:
    if is_word(field):
        return Text(WORDS.get(name, name.upper()), "cyan")
    return Text.assemble((f"--{name}", "cyan"), "" if is_switch(field) else f" {_value(field)}")


def _value(field: FieldInfo) -> str:
    """Return the choices of `field` (`auto|cuda|mps|cpu`), or N, X or TEXT by its type."""
    kinds = {int: _("N"), float: _("X")}
    return "|".join(choices(field)) or kinds.get(without_none(field.annotation), _("TEXT"))


def _meaning(field: FieldInfo, default: object) -> Text:
    text = Text(translate(field.description or ""))
    if not (is_word(field) or is_switch(field) or default is None):
        text.append(_(" Default: {default}.").format(default=default), "dim")
    return text


def _lines(flag: Text, meaning: Text, console: Console) -> Iterator[Text]:
    """Yield the flag with its meaning, wrapped into a column of its own; the meaning of a long flag is below it."""
    head = Text(" " * INDENT) + flag
    if cell_len(head.plain) > COLUMN - 2:
        yield head
        head = Text()
    head.pad_right(COLUMN - cell_len(head.plain))
    for line in meaning.wrap(console, max(console.width - COLUMN, 20)):
        line.rstrip()
        yield head + line
        head = Text(" " * COLUMN)
