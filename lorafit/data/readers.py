"""What stands in a data file, row by row? Streaming readers that know each row's line: JSON, JSONL, CSV.

The standard readers either load everything or lose the line, and a person who mends a file needs the line.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from lorafit.errors import DataError
from lorafit.messages import _

CHUNK = 1 << 18  # characters
EDGE = 32  # characters: an error this near to the window's end may only be a value that goes on behind it
SPACE = " \t\n\r"


@dataclass(frozen=True)
class Row:
    """One row as it stands in its file; `line` counts from 1 (rows of a hub's data set: their number)."""

    value: object
    file: str
    line: int


class _Window:
    """A window that moves over a text file: `text[pos:]` is what is read and not yet used, `line` the line at `pos`."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.text, self.pos, self.line, self.ended = file, "", 0, 1, False

    def grow(self) -> None:
        """Drop what is used and read on: as much again as is kept, so that a huge element costs no quadratic time."""
        kept = self.text[self.pos :]
        fresh = self.file.read(max(CHUNK, len(kept)))
        self.text, self.pos, self.ended = kept + fresh, 0, not fresh

    def advance(self, end: int) -> None:
        self.line += self.text.count("\n", self.pos, end)
        self.pos = end

    def peek(self) -> str:
        """The next character that is no space, "" at the end of the file; `pos` moves to it."""
        while True:
            end = self.pos
            while end < len(self.text) and self.text[end] in SPACE:
                end += 1
            self.advance(end)
            if end < len(self.text) or self.ended:
                return self.text[end : end + 1]
            self.grow()

    def take(self, character: str) -> bool:
        """Step over `character` if it comes next."""
        found = self.peek() == character
        if found:
            self.advance(self.pos + 1)
        return found

    def value(self) -> object:
        """The next JSON value. Raises ValueError at a broken or cut one, RecursionError at one nested too deep."""
        self.peek()
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.text, self.pos)
                if self.ended or end < len(self.text) - EDGE:
                    self.advance(end)
                    return value
            except json.JSONDecodeError as error:
                goes_on = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - EDGE
                if self.ended or not goes_on:
                    self.advance(error.pos)
                    raise
            self.grow()


def read_json(path: Path) -> Iterator[Row]:
    """The elements of an array, one by one; also objects one after the other, since many such files are named .json."""
    with path.open(encoding="utf-8-sig") as file:
        window = _Window(file)
        in_array = window.take("[")
        if not in_array and window.peek() not in ("{", ""):
            raise _broken(path, window.line, _("The file is neither a JSON array nor JSON objects."), window.peek())
        while window.peek() not in ("]" if in_array else "", ""):
            line = window.line
            try:
                value = window.value()
            except UnicodeDecodeError:  # a ValueError too, from reading on
                raise
            except (ValueError, RecursionError) as error:
                raise _broken(
                    path, window.line, _("An element is not valid JSON, or the file was cut off."), error
                ) from None
            yield Row(value, str(path), line)
            if in_array and not window.take(","):
                break
        if in_array and not window.take("]"):
            raise _broken(
                path, window.line, _("The array does not go on or end here."), window.peek() or _("end of file")
            )
        if window.peek():
            raise _broken(path, window.line, _("Something stands behind the end of the array."), window.peek())


def read_jsonl(path: Path) -> Iterator[Row]:
    """One JSON value a line; blank lines are passed over."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _broken(path, number, _("The line is not valid JSON, or was cut off."), error) from None
            yield Row(value, str(path), number)


def read_csv(path: Path) -> Iterator[Row]:
    """One object a record, its keys from the first record; quoted fields may hold line breaks."""
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is shorter than some contracts
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header: list[str] = []
        while True:
            line = reader.line_num + 1
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise _broken(path, line, _("The record is not valid CSV, or was cut off."), error) from None
            if not record:
                continue
            if not header:
                header = _header(path, line, record)
            elif len(record) != len(header):
                found = _("{found} fields, the header has {wanted}").format(found=len(record), wanted=len(header))
                raise _broken(path, line, _("The record does not fit the header."), found)
            else:
                yield Row(dict(zip(header, record, strict=True)), str(path), line)


def _header(path: Path, line: int, record: list[str]) -> list[str]:
    names = [name.strip() for name in record]
    if len(set(names)) < len(names):
        raise _broken(path, line, _("Two columns have the same name."), ", ".join(names))
    return names


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {".json": read_json, ".jsonl": read_jsonl, ".csv": read_csv}


def read_file(path: Path) -> Iterator[Row]:
    """The rows of a file of a known extension. Raises DataError when it cannot be read, is no UTF-8, or is broken."""
    try:
        yield from READERS[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        fix = _("Save it as UTF-8, e.g. `iconv -f GB18030 -t UTF-8 {name} > utf8-{name}`.").format(name=path.name)
        where = f"{path}:{_undecodable_line(path)}"
        raise DataError(_("The file is not UTF-8 text."), where=where, found=error, fix=fix) from None
    except OSError as error:
        raise DataError(
            _("The file cannot be read."), where=path, found=error.strerror, fix=_("Check its permissions.")
        ) from None


def _undecodable_line(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return number


def _broken(path: Path, line: int, what: str, found: object) -> DataError:
    reason = getattr(found, "msg", found)  # the full text of a JSON error counts lines from the window's start
    fix = _("Mend or remove that line, or fetch the file again.")
    return DataError(what, where=f"{path}:{line}", found=reason, fix=fix)
