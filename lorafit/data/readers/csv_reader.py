"""Reader of CSV and TSV files: one object per record, with the keys of the header.

Reading continues after a broken record.
"""

import csv
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from lorafit.data.readers.row import Broken, Row
from lorafit.data.readers.text import kind_of, open_text
from lorafit.errors import DataError
from lorafit.messages import _, listed

LONGEST_FIELD = 1 << 26  # characters; some contracts exceed the default of 128 KiB
LONGEST_RECORD = 10_000  # lines; limits the damage of a quote that is never closed
DELIMITERS = ",;\t"


class _Lines:
    """The lines of a file, some of which can be read again. `number` is the number of the last line read."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.number = file, 0
        self.again: deque[str] = deque()  # lines to read before the next line of the file
        self.taken: list[str] = []  # lines of the current record

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

    def push_back(self) -> None:
        """Put back all lines of the current record except the first."""
        self.again.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1


def read_csv(path: Path) -> Iterator[Row]:
    """Yield the records of a table with a header; quoted fields may contain line breaks.

    Raises DataError if two columns have the same name.
    """
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
                lines.push_back()
                yield Row(record, str(path), line)
            elif not header:
                header = _header(path, line, record)
            else:
                yield Row(_object(header, record), str(path), line)


def _record(lines: _Lines, delimiter: str) -> list[str] | Broken | None:
    """Return the next record, Broken for a faulty record, [] for a blank line, None at the end of the file."""
    try:
        return next(csv.reader(lines, delimiter=delimiter, strict=True), None)
    except csv.Error as error:
        return Broken(str(error), _("a record with quotes in pairs"), "".join(lines.taken)[:200])


def _delimiter(path: Path) -> str:
    """Return the most frequent delimiter in the first line; in some countries, spreadsheets do not write commas."""
    with open_text(path, newline="") as file:
        first = file.readline(LONGEST_FIELD)
    return max(DELIMITERS, key=first.count)


def _header(path: Path, line: int, record: list[str]) -> list[str]:
    names = [name.strip() for name in record]
    if len(set(names)) < len(names):
        fix = _("Give each column a different name.")
        raise DataError(
            _("Two columns have the same name."), where=f"{path}:{line}", found=listed(names)[:300], fix=fix
        )
    return names


def _object(header: list[str], record: list[str]) -> object:
    if len(record) == len(header):
        return dict(zip(header, record, strict=True))
    wanted = _("field count {n}, as in the header").format(n=len(header))
    return Broken(_("field count {n}").format(n=len(record)), wanted, ",".join(record)[:200])
