"""Checks of the typed flags and their values, before tyro parses them.

tyro's own errors are in English only, do not use lorafit's terms and suggest no fix.
"""

import difflib
import itertools
import re
from collections.abc import Sequence

import tyro
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from lorafit.config import TrainConfig, accepted_values, is_switch, setting_error
from lorafit.errors import ConfigError
from lorafit.messages import _

HELP = ("-h", "--help")


def is_word(field: FieldInfo) -> bool:
    """Return whether `field` is a positional argument."""
    return tyro.conf.Positional in field.metadata


def check_arguments(kind: type[BaseModel], argv: Sequence[str], verb: str) -> None:
    """Raise ConfigError if `argv` has an unknown flag, a stray word, or a value that its flag cannot take.

    The words after -h or --help are not checked.
    """
    words = iter(argv)
    for word in words:
        if word in HELP:
            return
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--"):
            raise _unexpected_word(word, verb)
        if name not in kind.model_fields and not _switched_off(kind, name):
            raise _unknown(kind, flag, name, verb)
        if _switched_off(kind, name) or is_switch(kind.model_fields[name]):
            if equals:
                raise _unexpected_word(word, verb)
            continue
        _check_value(kind, name, value if equals else next(words, "--"))


def split_words(kind: type[BaseModel], argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split `argv` into the words that belong to no flag of `kind`, at any position, and flags with their values."""
    words: list[str] = []
    flags: list[str] = []
    rest = iter(argv)
    for word in rest:
        name = word.removeprefix("--").replace("-", "_")
        if not word.startswith("-"):
            words.append(word)
        elif name in kind.model_fields and not is_switch(kind.model_fields[name]):
            flags += [word, *itertools.islice(rest, 1)]
        else:
            flags.append(word)
    return words, flags


def split_flags(own: type[BaseModel], argv: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Split `argv` into words without a flag, flags of `own`, and other flags (those of TrainConfig).

    Each flag keeps its value. `-o` is read as `--output`.
    """
    words: list[str] = []
    mine: list[str] = []
    others: list[str] = []
    rest = iter(re.sub(r"^-o(=|$)", r"--output\1", word) for word in argv)
    for word in rest:
        name = word.removeprefix("--").replace("-", "_")
        kind = own if name.partition("=")[0] in own.model_fields or word in HELP else TrainConfig
        flags = words if not word.startswith("-") else mine if kind is own else others
        flags.append(word)
        if word.startswith("--") and name in kind.model_fields and not is_switch(kind.model_fields[name]):
            flags += itertools.islice(rest, 1)
    return words, mine, others


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


def _unknown(kind: type[BaseModel], flag: str, name: str, verb: str) -> ConfigError:
    near = difflib.get_close_matches(name, kind.model_fields, n=1)
    return ConfigError(
        _("Unknown flag `{flag}`.").format(flag=flag),
        found=flag,
        fix=_("Did you mean `{name}`?").format(name=f"--{near[0]}")
        if near
        else _("Run `{command} --help` for the list of flags.").format(command=f"lorafit {verb}"),
    )


def _unexpected_word(word: str, verb: str) -> ConfigError:
    return ConfigError(
        _("Unexpected argument `{word}`.").format(word=word),
        found=word,
        fix=_("See `{command} --help`: flags start with `--`, and switches take no value.").format(
            command=f"lorafit {verb}"
        ),
    )
