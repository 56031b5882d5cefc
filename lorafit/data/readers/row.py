"""Raw rows: a value with its file and line, or `Broken` where parsing failed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Broken:
    """Placeholder for an unreadable value.

    `found` is the fault, `wanted` the expected form, and `text` the beginning of the unreadable text. `rows` is the
    number of rows that were lost; for damage over a longer stretch, an estimate.
    """

    found: str
    wanted: str
    text: str = ""
    rows: int = 1

    def __str__(self) -> str:
        return self.text


class Renamed(dict[Any, Any]):
    """A row with the keys of lorafit's formats. `others` holds its further keys, which no format may use."""

    def __init__(self, row: Mapping[Any, Any], others: Mapping[Any, Any]) -> None:
        super().__init__(row)
        self.others = others

    def __reduce__(self) -> tuple[type["Renamed"], tuple[dict[Any, Any], Mapping[Any, Any]]]:
        return Renamed, (dict(self), self.others)


@dataclass(frozen=True)
class Row:
    """One row of a file. `line` counts from 1; in tables and hub data it is the number of the row."""

    value: object
    file: str
    line: int


def rows_in(value: object) -> int:
    """Return how many rows of the file `value` stands for: 1, or for Broken the number of lost rows."""
    return value.rows if isinstance(value, Broken) else 1
