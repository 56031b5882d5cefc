"""What stands in a CSV or TSV file? One object a record, its keys from the first; behind a broken one it goes on."""

import csv
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from lorafit.data.readers.row import Broken, Row
from lorafit.data.readers.text import kind_of, open_text
from lorafit.errors import DataError
from lorafit.messages import _, listed

LONGEST_FIELD = 1 << 26  # characters; the default, 128 KiB, is shorter than some contracts
LONGEST_RECORD = 10_000  # lines: a quote that never ends must not swallow the file
DELIMITERS = ",;\t"


class _Lines:
    """A file's lines, some of which may be given back; `number` is that of the line read last."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.number = file, 0
        self.again: deque[str] = deque()
        self.taken: list[str] = []  # since the record began

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if len(self.taken) == LONGEST_RECORD:
            raise csv.Error(f"no end within {LONGEST_RECORD} lines")
        line = self.again.popleft() if self.again else self.file.readline(LONGEST_FIELD)
        if not line:
            raise StopIteration
        self.number += 1
        self.taken.append(line)
        return line

    def give_back(self) -> None:
        """Let all but the first line of this record be read once more."""
        self.again.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1


def read_csv(path: Path) -> Iterator[Row]:
    """The records of a table with a header; quoted fields may hold line breaks."""
    csv.field_size_limit(LONGEST_FIELD)
    delimiter = "\t" if kind_of(path) == ".tsv" else _delimiter(path)
    with open_text(path, newline="") as file:
        lines, header = _Lines(file), list[str]()
        while True:
            lines.taken = []
            record = _record(lines, delimiter)
            if record is None:
                return
            if isinstance(record, list) and not record:
                continue
            line = lines.number + 1 - len(lines.taken)
            if isinstance(record, Broken):
                lines.give_back()
                yield Row(record, str(path), line)
            elif not header:
                header = _header(path, line, record)
            else:
                yield Row(_object(header, record), str(path), line)


def _record(lines: _Lines, delimiter: str) -> list[str] | Broken | None:
    """The next record, [] for a blank line, None at the end."""
    try:
        return next(csv.reader(lines, delimiter=delimiter, strict=True), None)
    except csv.Error as error:
        return Broken(str(error), _("a record whose quotes are in pairs"), "".join(lines.taken)[:200])


def _delimiter(path: Path) -> str:
    """What stands most often in the header: a comma, or what spreadsheets write in other countries."""
    with open_text(path, newline="") as file:
        first = file.readline(LONGEST_FIELD)
    return max(DELIMITERS, key=first.count)


def _header(path: Path, line: int, record: list[str]) -> list[str]:
    names = [name.strip() for name in record]
    if len(set(names)) < len(names):
        fix = _("Give each column a name of its own.")
        raise DataError(
            _("Two columns have the same name."), where=f"{path}:{line}", found=listed(names)[:300], fix=fix
        )
    return names


def _object(header: list[str], record: list[str]) -> object:
    if len(record) == len(header):
        return dict(zip(header, record, strict=True))
    wanted = _("{n} fields, as in the header").format(n=len(header))
    return Broken(_("{n} fields").format(n=len(record)), wanted, ",".join(record)[:200])
