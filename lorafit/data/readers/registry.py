"""Table of the readers by file extension, for compressed and uncompressed files.

A new file type is one entry in READERS. Every reader yields Rows with their lines, and Broken values for faulty rows.
DataError is raised only for a file that cannot be read at all.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from lorafit.data.readers.arrow_reader import read_arrow, read_parquet
from lorafit.data.readers.csv_reader import read_csv
from lorafit.data.readers.json_reader import read_json, read_jsonl
from lorafit.data.readers.reading import Reading
from lorafit.data.readers.row import Broken, Row
from lorafit.data.readers.text import DAMAGED, DECOMPRESSORS, kind_of
from lorafit.data.readers.xlsx_reader import read_xlsx
from lorafit.errors import DataError
from lorafit.messages import _, listed

__all__ = ["READERS", "Broken", "Row", "is_data_file", "read_file", "supported_extensions"]

READERS: dict[str, Callable[[Path, Reading], Iterator[Row]]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".xlsx": read_xlsx,
}
TABLES = (".parquet", ".arrow", ".xlsx")  # compressed internally; a reader needs random access


def is_data_file(path: Path) -> bool:
    """Return whether the file's extension is supported."""
    return kind_of(path) in READERS and not (kind_of(path) in TABLES and path.suffix.lower() in DECOMPRESSORS)


def supported_extensions() -> str:
    """Return the supported extensions as text for the user."""
    return _("{kinds} (text formats also with {packed})").format(
        kinds=listed([*READERS, ".zip"]), packed=listed(DECOMPRESSORS)
    )


def read_file(path: Path, reading: Reading) -> Iterator[Row]:
    """Yield the rows of a file with a supported extension.

    The rows of a damaged file end with a Broken row. Raises DataError if the file cannot be read at all.
    """
    row = None
    try:
        for row in READERS[kind_of(path)](path, reading):
            yield row
    except (*DAMAGED, UnicodeDecodeError) as error:
        line = row.line if row else 1
        yield Row(Broken(str(error), _("an intact file (the rest of this one cannot be read)")), str(path), line)
    except OSError as error:
        raise DataError(
            _("The file cannot be read."),
            where=path,
            found=error.strerror or error,
            fix=_("Check the file's permissions."),
        ) from None
