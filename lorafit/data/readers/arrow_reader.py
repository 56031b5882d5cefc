"""Readers of Parquet and Arrow files with pyarrow, in batches. The number of a row serves as its line."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lorafit.data.readers.reading import Reading
from lorafit.data.readers.row import Broken, Row
from lorafit.errors import DataError
from lorafit.messages import _
from lorafit.units import count_text

BATCH = 256  # rows per batch


def read_parquet(path: Path, _reading: Reading) -> Iterator[Row]:
    """Yield the rows of a Parquet file. A damaged row group ends with one Broken row.

    Raises DataError if the file cannot be opened.
    """
    from pyarrow import parquet  # takes 0.2 s to import

    file = _opened(path, parquet.ParquetFile)
    number = 1
    for group in range(file.num_row_groups):
        batches, rows = file.iter_batches(BATCH, row_groups=[group]), file.metadata.row_group(group).num_rows
        yield from _rows(path, batches, number, number + rows)
        number += rows


def read_arrow(path: Path, _reading: Reading) -> Iterator[Row]:
    """Yield the rows of an Arrow file, or of an Arrow stream as `datasets` stores it.

    Raises DataError if the file cannot be opened.
    """
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        try:
            reader = pyarrow.ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        except (pyarrow.ArrowException, OSError):
            source.seek(0)
            batches = iter(_opened(path, lambda _path: pyarrow.ipc.open_stream(source)))
        yield from _rows(path, batches, 1)


def _opened(path: Path, open_file: Callable[[Path], Any]) -> Any:
    import pyarrow

    try:
        return open_file(path)
    except (pyarrow.ArrowException, OSError) as error:
        fix = _("Download or create the file again.")
        raise DataError(_("The table file cannot be opened."), where=path, found=str(error)[:300], fix=fix) from None


def _rows(path: Path, batches: Iterator[Any], number: int, end: int | None = None) -> Iterator[Row]:
    """Yield the rows of the batches, which have the numbers from `number` to below `end` (None: unknown)."""
    import pyarrow

    while True:
        try:
            batch = next(batches, None)
        except (pyarrow.ArrowException, OSError) as error:
            if end is None:
                raise _damaged(path, number, error) from None
            lost = max(end - number, 1)
            text = _("{problem}; rows lost: {rows}").format(problem=str(error)[:200], rows=count_text(lost))
            yield Row(Broken(text, _("a readable table from here on"), rows=lost), str(path), number)
            return
        if batch is None:
            return
        for start in range(0, batch.num_rows, BATCH):
            part = batch.slice(start, BATCH)
            for value in _values(part):
                yield Row(value, str(path), number)
                number += 1


def _damaged(path: Path, number: int, error: Exception) -> DataError:
    return DataError(
        _("The rest of the file cannot be read: no good row follows a damaged one."),
        where=f"{path}:{number}",
        found=str(error)[:300],
        fix=_("Download or create the file again."),
    )


def _values(batch: Any) -> Iterator[object]:
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, or a date out of range
        if batch.num_rows == 1:
            yield Broken(str(error)[:200], _("readable values"))
            return
        for place in range(batch.num_rows):
            yield from _values(batch.slice(place, 1))
