"""What stands in a Parquet or Arrow file? Its rows by pyarrow, some at a time; a row's number stands for its line."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lorafit.data.readers.row import Broken, Row
from lorafit.errors import DataError
from lorafit.messages import _

BATCH = 256  # rows


def read_parquet(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file; of a damaged group of rows, one Broken."""
    from pyarrow import parquet  # 0.2 s, for such files only

    file = _opened(path, parquet.ParquetFile)
    number = 1
    for group in range(file.num_row_groups):
        batches = file.iter_batches(BATCH, row_groups=[group])
        yield from _rows(path, batches, number)
        number += file.metadata.row_group(group).num_rows


def read_arrow(path: Path) -> Iterator[Row]:
    """The rows of an Arrow file, or of a stream as `datasets` keeps it."""
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
        fix = _("Fetch or write it again.")
        raise DataError(_("The table cannot be opened."), where=path, found=str(error)[:300], fix=fix) from None


def _rows(path: Path, batches: Iterator[Any], number: int) -> Iterator[Row]:
    import pyarrow

    while True:
        try:
            batch = next(batches, None)
        except (pyarrow.ArrowException, OSError) as error:
            yield Row(Broken(str(error)[:200], _("a table that can be read from here on")), str(path), number)
            return
        if batch is None:
            return
        for start in range(0, batch.num_rows, BATCH):
            part = batch.slice(start, BATCH)
            for value in _values(part):
                yield Row(value, str(path), number)
                number += 1


def _values(batch: Any) -> Iterator[object]:
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError) as error:  # text that is no UTF-8, a date beyond the calendar
        if batch.num_rows == 1:
            yield Broken(str(error)[:200], _("values that can be read"))
            return
        for place in range(batch.num_rows):
            yield from _values(batch.slice(place, 1))
