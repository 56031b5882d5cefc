"""Reader of CSV and TSV files: one object per record, with the keys of the header.

Reading continues after a broken record.
"""

import csv
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from lorafit.data.readers.reading import Reading
from lorafit.data.readers.row import Broken, Row
from lorafit.data.readers.table import Table, is_blank
from lorafit.data.readers.text import kind_of, open_text
from lorafit.messages import _

LONGEST_FIELD = 1 << 26  # characters; some contracts exceed the default of 128 KiB
LONGEST_RECORD = 10_000  # lines; limits the damage of a quote that is never closed
DELIMITERS = ",;\t"
TOLD_DELIMITER = re.compile(r'"?sep=([^\w\s"]|\t)"?[\r\n]*', re.IGNORECASE)  # the first line in files for Excel


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


def read_csv(path: Path, reading: Reading) -> Iterator[Row]:
    """Yield the records of a table with a header; quoted fields may contain line breaks.

    A first line such as `sep=;` sets the separator. Raises DataError if two columns have the same name.
    """
    csv.field_size_limit(LONGEST_FIELD)
    with open_text(path, reading, newline="") as file:
        first = file.readline(LONGEST_FIELD)
    told = TOLD_DELIMITER.fullmatch(first)
    delimiter = told[1] if told else "\t" if kind_of(path) == ".tsv" else _delimiter(first)
    with open_text(path, reading, newline="") as file:
        lines, table = _Lines(file), None
        if told:
            next(lines)
        while True:
            lines.taken = []
            record = _record(lines, delimiter)
            if record is None:
                return
            if isinstance(record, list) and is_blank(record):
                continue
            line = lines.number + 1 - len(lines.taken)
            if isinstance(record, Broken):
                lines.push_back()
                yield Row(record, str(path), line)
            elif table is None:
                table = Table(path, line, record, reading)
            else:
                yield Row(table.row(record), str(path), line)


def _record(lines: _Lines, delimiter: str) -> list[str] | Broken | None:
    """Return the next record, Broken for a faulty record, [] for a blank line, None at the end of the file."""
    try:
        return next(csv.reader(lines, delimiter=delimiter, strict=True), None)
    except csv.Error as error:
        return Broken(str(error), _("a record with quotes in pairs"), "".join(lines.taken)[:200])


def _delimiter(first: str) -> str:
    """Return the most frequent delimiter in the first line; in some countries, spreadsheets do not write commas."""
    return max(DELIMITERS, key=first.count)
