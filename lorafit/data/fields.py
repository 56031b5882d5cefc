"""The keys and values of a row, or of a message in it, with a record of the keys that were used."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lorafit.data.conversation import BadRow
from lorafit.messages import _, listed
from lorafit.units import kind_text

BLANK = ("", "[]", "{}")
LONG_TEXT = 20  # characters from which an unused text may be worth learning from


def is_blank(value: object) -> bool:
    """Return whether `value` counts as absent: null, NaN, no text, or an empty list or object, also as text."""
    if isinstance(value, str):
        return value.strip() in BLANK
    return value is None or value != value or value in ([], {})


class Fields:
    """The values of a row by key, without null and NaN. `path` is the place of the row's keys in messages."""

    def __init__(self, row: Mapping[Any, Any], path: str = "") -> None:
        self.row = {key: value for key, value in row.items() if value is not None and value == value}
        self.path, self.used = path, set[str]()
        self.unused_inside: dict[str, bool] = {}  # keys that messages have, and nothing uses

    def __contains__(self, key: str) -> bool:
        return key in self.row

    def __getitem__(self, key: str) -> Any:
        self.used.add(key)
        return self.row[key]

    def optional(self, key: str) -> Any:
        """Return the value under `key`, or None if it is absent or blank."""
        value = self[key] if key in self.row else None
        return None if is_blank(value) else value

    def is_blank(self, key: str) -> bool:
        """Return whether there is no value under `key`, without using the key."""
        return is_blank(self.row.get(key))

    def place(self, key: str) -> str:
        """Return the name of the key in messages, such as "messages[2].content"."""
        return f"{self.path}.{key}" if self.path else key

    def text(self, key: str, may_be_empty: bool = False) -> str:
        """Return the text under `key`. Raises BadRow."""
        return checked_text(self[key], self.place(key), may_be_empty)

    def from_json(self, key: str) -> Any:
        """Return the value under `key`; a text is parsed as JSON. Raises BadRow."""
        return from_json(self[key], self.place(key))

    def rest(self) -> Iterator[tuple[str, bool]]:
        """Yield each key that has a value and was not used, and whether the value is a text of some length."""
        yield from self.unused_inside.items()
        for key, value in self.row.items():
            if key not in self.used and not is_blank(value):
                parts = value if isinstance(value, list) else [value]
                texts = all(isinstance(part, str) for part in parts)
                yield str(key), texts and sum(map(len, parts)) >= LONG_TEXT


def checked_text(text: object, place: str, may_be_empty: bool = False) -> str:
    """Return `text`. Raises BadRow if it is not a string, is empty, or contains a lone surrogate."""
    if not isinstance(text, str):
        raise BadRow(_("`{key}`: expected text, found {kind}").format(key=place, kind=kind_text(text)))
    if not text.strip() and not may_be_empty:
        raise BadRow(_("`{key}` is empty").format(key=place))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # from JSON escapes, or from bytes that are not UTF-8; tokenizers reject it
        raise BadRow(
            _("`{key}` contains an invalid character (half of a surrogate pair, or not UTF-8)").format(key=place)
        ) from None
    return text


def from_json(value: object, place: str) -> Any:
    """Parse a string as JSON; return any other value unchanged. Raises BadRow.

    Many data sets store nested values as JSON strings.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadRow(_("`{key}` is not valid JSON").format(key=place)) from None


def as_json(value: object, place: str) -> str:
    """Return `value` as JSON. Raises BadRow."""
    try:
        return checked_text(json.dumps(value, ensure_ascii=False), place)
    except (TypeError, RecursionError):
        raise BadRow(_("`{key}` contains a value that JSON cannot represent").format(key=place)) from None


def keys_text(keys: Iterable[str]) -> str:
    """Return `keys` as a list of at most 300 characters; a shorter one keeps its recipe."""
    found = listed(keys) or _("no keys")
    return found if len(found) <= 300 else found[:300]
