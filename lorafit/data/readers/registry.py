"""Which reader reads a file? By its extension, compressed or not. One table; a new kind of file is a line in it.

Every reader yields Rows, Broken ones among them, each with its line; only a file that cannot be opened at all is a
DataError.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from lorafit.data.readers.arrow_reader import read_arrow, read_parquet
from lorafit.data.readers.csv_reader import read_csv
from lorafit.data.readers.json_reader import read_json, read_jsonl
from lorafit.data.readers.row import Broken, Row
from lorafit.data.readers.text import DAMAGED, UNPACKERS, kind_of
from lorafit.errors import DataError
from lorafit.messages import _, listed

__all__ = ["READERS", "Broken", "Row", "is_data_file", "kinds", "read_file"]

READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
TABLES = (".parquet", ".arrow")  # compressed inside, and read from many places at once


def is_data_file(path: Path) -> bool:
    """Whether its name is one that can be read."""
    return kind_of(path) in READERS and not (kind_of(path) in TABLES and path.suffix.lower() in UNPACKERS)


def kinds() -> str:
    """All that can be read, for a person."""
    return _("{kinds} (text also as {packed})").format(kinds=listed(READERS), packed=listed(UNPACKERS))


def read_file(path: Path) -> Iterator[Row]:
    """The rows of a file of a known kind. Raises DataError when it cannot be opened."""
    row = None
    try:
        for row in READERS[kind_of(path)](path):
            yield row
    except (*DAMAGED, UnicodeDecodeError) as error:
        line = row.line if row else 1
        yield Row(Broken(str(error), _("a file that is whole: the rest of it is lost")), str(path), line)
    except OSError as error:
        raise DataError(
            _("The file cannot be read."), where=path, found=error.strerror or error, fix=_("Check its permissions.")
        ) from None
