"""Are the flags such as the command has, each with a value it can take? Words in the user's language for those that are not.

tyro parses what passes here; its own errors know English only and neither our names for things nor a remedy.
"""

import difflib
import itertools
import re
from collections.abc import Sequence

import tyro
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from lorafit.config import TrainConfig, is_switch, setting_error, wanted
from lorafit.errors import ConfigError
from lorafit.messages import _

HELP = ("-h", "--help")


def is_word(field: FieldInfo) -> bool:
    """Whether `field` is given as words without a flag."""
    return tyro.conf.Positional in field.metadata


def check_arguments(kind: type[BaseModel], argv: Sequence[str], verb: str) -> None:
    """Raise ConfigError for a word of `argv` that is no flag of `kind`, and for a value that its flag cannot take."""
    words = iter(argv)
    for word in words:
        if word in HELP:
            return
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--"):
            raise _stray(word, verb)
        if name not in kind.model_fields and not _switched_off(kind, name):
            raise _unknown(kind, flag, name, verb)
        if _switched_off(kind, name) or is_switch(kind.model_fields[name]):
            if equals:
                raise _stray(word, verb)
            continue
        _check_value(kind, name, value if equals else next(words, "--"))


def part_words(kind: type[BaseModel], argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of `argv` that belong to no flag of `kind`, wherever they stand, and the flags with their values."""
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


def share_out(own: type[BaseModel], argv: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Words without a flag, flags that `own` has, and the other flags, which are a training's; each with its value."""
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
    """Whether `name` is the no_ of a switch."""
    field = kind.model_fields.get(name.removeprefix("no_"))
    return name.startswith("no_") and field is not None and is_switch(field)


def _check_value(kind: type[BaseModel], name: str, value: str) -> None:
    field = kind.model_fields[name]
    if value.startswith("--"):
        what = _("The flag `--{name}` needs a value behind it.").format(name=name)
        raise ConfigError(what, fix=_("Wanted: {wanted}.").format(wanted=wanted(field)))
    if value == "None" and field.default is None:
        return
    try:
        kind.model_validate({name: value})
    except ValidationError:
        raise setting_error(kind, name, value, f"--{name}") from None


def _unknown(kind: type[BaseModel], flag: str, name: str, verb: str) -> ConfigError:
    near = difflib.get_close_matches(name, kind.model_fields, n=1)
    return ConfigError(
        _("There is no flag `{flag}`.").format(flag=flag),
        found=flag,
        fix=_("Did you mean `{name}`?").format(name=f"--{near[0]}")
        if near
        else _("`{command} --help` lists all flags.").format(command=f"lorafit {verb}"),
    )


def _stray(word: str, verb: str) -> ConfigError:
    return ConfigError(
        _("The word `{word}` belongs to no flag.").format(word=word),
        found=word,
        fix=_("Flags begin with `--`, switches take no value; `{command} --help` lists all flags.").format(
            command=f"lorafit {verb}"
        ),
    )
