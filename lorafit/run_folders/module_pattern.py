"""PEFT's rank_pattern and alpha_pattern: values for some modules of an adapter.

A key is a regular expression for a module's name, or for its end after a dot. The first key that matches counts.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

MOST_REPEATS = 4  # repetitions in a key
Value = TypeVar("Value", int, float)


def value_of(pattern: Mapping[str, Value], module: str, otherwise: Value) -> Value:
    """Return the value that `pattern` has for `module`, or `otherwise`."""
    matching = (value for key, value in pattern.items() if re.fullmatch(_whole(key), module))
    return next(matching, otherwise)


def make_pattern(values: Mapping[str, Value], usual: Value) -> dict[str, Value]:
    """Return the `values` by module that differ from `usual`.

    A key is the last part of a module's name if all modules with this part have one value, else the full name.
    """
    kinds: dict[str, set[Value]] = {}
    for module, value in values.items():
        kinds.setdefault(_last(module), set()).add(value)
    return {
        _last(module) if len(kinds[_last(module)]) == 1 else module: value
        for module, value in sorted(values.items())
        if value != usual
    }


def check_keys(pattern: object, name: str) -> None:
    """Raise ValueError unless `pattern`, the setting `name`, is a table with valid keys."""
    if not isinstance(pattern, dict):
        raise ValueError(f"{name}: {pattern!r}")
    for key in pattern:
        if len(re.findall(r"[*+{]", key)) > MOST_REPEATS or re.search(r"\)[*+{]", key):
            raise ValueError(f"{name}: {key!r}")  # matching could take forever
        try:
            re.compile(_whole(key))
        except re.error as error:
            raise ValueError(f"{name}: {key!r}: {error}") from None


def _whole(key: str) -> str:
    return rf"(.*\.)?({key})"


def _last(module: str) -> str:
    return module.rpartition(".")[2]
