"""What is a row before anything is known of its meaning? A value and where it stands; or what stands there instead."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Broken:
    """In place of a value that cannot be read: what was `found`, what is `wanted`, and the beginning of what stands there."""

    found: str
    wanted: str
    text: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Row:
    """One row as it stands in its file; `line` counts from 1 (in tables and hub data: the row's number)."""

    value: object
    file: str
    line: int
