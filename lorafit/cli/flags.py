"""Checks of the typed flags and their values, before tyro parses them.

tyro's own errors are in English only, do not use lorafit's terms and suggest no fix.
"""

import itertools
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tyro
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from lorafit.cli.foreign.hints import fixes, typed_values
from lorafit.config import TrainConfig, accepted_values, is_switch, setting_error
from lorafit.errors import ConfigError
from lorafit.messages import _, listed

HELP = ("-h", "--help")


def is_word(field: FieldInfo) -> bool:
    """Return whether `field` is a positional argument."""
    return tyro.conf.Positional in field.metadata


def check_arguments(kind: type[BaseModel], argv: Sequence[str], verb: str) -> None:
    """Raise ConfigError if `argv` has an unknown flag, a stray word, or a value that its flag cannot take.

    The words after -h or --help are not checked.
    """
    argv = list(itertools.takewhile(lambda word: word not in HELP, argv))
    typed = list(_typed(argv))
    unknown = [flag for flag, _value in typed if not _known(kind, _name(flag))]
    if unknown:
        raise _unknown(kind, unknown, typed_values((_name(flag), value) for flag, value in typed), verb)
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        name = _name(flag)
        if not flag.startswith("--"):
            raise _unexpected_word(word, verb)
        if _switched_off(kind, name) or is_switch(kind.model_fields[name]):
            if equals:
                raise _unexpected_word(word, verb)
            continue
        _check_value(kind, name, value if equals else next(words, "--"))


def _typed(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield each flag in `argv` as it is typed, and the word behind it or behind "="; None without one."""
    for word, following in zip(argv, [*argv, "--"][1:], strict=True):
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            yield flag, value if equals else None if following.startswith("--") else following


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _known(kind: type[BaseModel], name: str) -> bool:
    return name in kind.model_fields or _switched_off(kind, name)


def split_words(kind: type[BaseModel], argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split `argv` into the words that belong to no flag of `kind`, at any position, and flags with their values."""
    words: list[str] = []
    flags: list[str] = []
    for group in _with_values(argv, lambda _flag: kind):
        (flags if group[0].startswith("-") else words).extend(group)
    return words, flags


def split_flags(own: type[BaseModel], argv: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Split `argv` into words without a flag, flags of `own`, and other flags (those of TrainConfig).

    Each flag keeps its value. `-o` is read as `--output`.
    """
    words: list[str] = []
    mine: list[str] = []
    others: list[str] = []

    def kind(flag: str) -> type[BaseModel]:
        return own if _name(flag) in own.model_fields or flag in HELP else TrainConfig

    for group in _with_values([re.sub(r"^-o(=|$)", r"--output\1", word) for word in argv], kind):
        flag = group[0].partition("=")[0]
        (words if not flag.startswith("-") else mine if kind(flag) is own else others).extend(group)
    return words, mine, others


def _with_values(argv: Iterable[str], kind: Callable[[str], type[BaseModel]]) -> Iterator[list[str]]:
    """Yield each word of `argv`, and with a flag its value. An unknown flag takes the word behind it."""
    rest = deque(argv)
    while rest:
        word = rest.popleft()
        flag, equals, _value = word.partition("=")
        fields, name = kind(flag), _name(flag)
        group = [word]
        if flag.startswith("--") and not equals and rest:
            own = fields.model_fields.get(name)
            takes = not is_switch(own) if own else not _switched_off(fields, name) and not rest[0].startswith("-")
            group += [rest.popleft()] if takes else []
        yield group


def _switched_off(kind: type[BaseModel], name: str) -> bool:
    """Return whether `name` is a switch of `kind` with the prefix no_."""
    field = kind.model_fields.get(name.removeprefix("no_"))
    return name.startswith("no_") and field is not None and is_switch(field)


def _check_value(kind: type[BaseModel], name: str, value: str) -> None:
    field = kind.model_fields[name]
    if value.startswith("--"):
        what = _("`--{name}` needs a value.").format(name=name)
        raise ConfigError(what, fix=_("Give a value ({wanted}).").format(wanted=accepted_values(field)))
    if value == "None" and field.default is None:
        return
    try:
        kind.model_validate({name: value})
    except ValidationError:
        raise setting_error(kind, name, value, f"--{name}") from None


def _unknown(kind: type[BaseModel], flags: list[str], given: dict[str, Any], verb: str) -> ConfigError:
    first = _("Unknown flag `{flag}`.").format(flag=flags[0])
    help = _("Run `{command} --help` for the list of flags.").format(command=f"lorafit {verb}")
    return ConfigError(
        first if len(flags) == 1 else _("Unknown flags: {flags}.").format(flags=listed(f"`{flag}`" for flag in flags)),
        fix=fixes(kind, [_name(flag) for flag in flags], given, help, "--"),
    )


def _unexpected_word(word: str, verb: str) -> ConfigError:
    return ConfigError(
        _("Unexpected argument `{word}`.").format(word=word),
        found=word,
        fix=_("See `{command} --help`: flags start with `--`, and switches take no value.").format(
            command=f"lorafit {verb}"
        ),
    )
