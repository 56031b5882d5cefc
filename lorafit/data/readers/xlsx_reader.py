"""Reader of Excel files (.xlsx) with openpyxl: the first sheet, with a header. The number of a row serves as its line.

Cells become text, as in a CSV file: numbers as they are stored, dates as 2024-07-26. A formula has the value that the
spreadsheet program stored with it.
"""

import warnings
import zipfile
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from xml.parsers import expat

from lorafit.data.readers.archive import ZIP_ERRORS, open_archive
from lorafit.data.readers.reading import Reading
from lorafit.data.readers.row import Broken, Row
from lorafit.data.readers.table import Table, is_blank
from lorafit.errors import DataError
from lorafit.messages import _, listed

MOST_BYTES = 1 << 31  # unpacked: openpyxl keeps all texts of a file in memory
MOST_ROWS = 1 << 20  # of a sheet, in Excel; a damaged file may state any number
CHUNK = 1 << 16
ERROR, FORMULA = "e", "f"  # openpyxl's types of cells


def read_xlsx(path: Path, reading: Reading) -> Iterator[Row]:
    """Yield the rows of the first sheet. Raises DataError if the file or the sheet cannot be read to its end."""
    try:
        with open_archive(path, MOST_BYTES) as archive:
            _check_xml(path, archive)
            has_formulas = any(_contains(archive, name, b"<f") for name in archive.namelist() if "/worksheets/" in name)
    except ZIP_ERRORS as error:
        raise _unreadable(path, error) from None
    table: Table | None = None
    texts = _Texts(path, reading)
    for number, cells in enumerate(_sheet_rows(path, reading, has_formulas), 1):
        record = [texts.of(cell, formula) for cell, formula in cells]
        broken = next((value for value in record if isinstance(value, Broken)), None)
        values = [value for value in record if isinstance(value, str)]
        if broken is not None:
            yield Row(broken, str(path), number)
        elif is_blank(values):
            continue
        elif table is None:
            table = Table(path, number, values, reading)
        else:
            yield Row(table.row([*values, *[""] * (len(table.names) - len(values))]), str(path), number)


def _sheet_rows(path: Path, reading: Reading, has_formulas: bool) -> Iterator[list[tuple[Any, Any]]]:
    """Yield the cells of each row, each with the cell of the same place that holds the formula (None: no formulas)."""
    number = 0
    try:
        values = _first_sheet(path, reading, True)
        formulas = _first_sheet(path, reading, False) if has_formulas else None
        for row in values:
            number += 1
            if number > MOST_ROWS:
                raise ValueError(f"row {number}")
            yield list(zip(row, next(formulas) if formulas else [None] * len(row), strict=True))
    except (DataError, GeneratorExit):
        raise
    except Exception as error:  # openpyxl and its XML parser raise a dozen types for a damaged file
        raise _unreadable(f"{path}:{number + 1}" if number else path, error) from None


def _unreadable(where: object, error: Exception) -> DataError:
    fix = _("Open it in a spreadsheet program and save it again as .xlsx, or export it as CSV (UTF-8).")
    found = f"{type(error).__name__}: {error}"[:300]
    return DataError(_("The Excel file cannot be read."), where=where, found=found, fix=fix)


def _first_sheet(path: Path, reading: Reading, data_only: bool) -> Iterator[Any]:
    import openpyxl  # takes 0.2 s to import

    warnings.filterwarnings("ignore", module="openpyxl")  # on parts of a book that are not read
    book = openpyxl.load_workbook(path, read_only=True, data_only=data_only)
    try:
        if not book.worksheets:
            raise ValueError("no sheet")
        sheet, *others = book.worksheets
        if others:
            text = _("first sheet: {name}; sheets that are not read: {others}")
            reading.say(path, text.format(name=sheet.title, others=listed(other.title for other in others)))
        sheet.reset_dimensions()  # a file may state a wrong size
        yield from sheet.rows
    finally:
        book.close()


class _Texts:
    """The texts of cells. Numbers, dates and error values are noted once."""

    def __init__(self, path: Path, reading: Reading) -> None:
        self.path, self.reading = path, reading

    def of(self, cell: Any, formula: Any) -> str | Broken:
        """Return the text of a cell, or Broken for an error value or a formula without a stored value."""
        value = cell.value
        if cell.data_type == ERROR:
            return Broken(_("error value {value} in cell {cell}").format(value=value, cell=_place(cell)), _("a value"))
        if value is None:
            if formula is None or formula.data_type != FORMULA:
                return ""
            text = _("a formula without a stored value in cell {cell}")
            wanted = _("the file as a spreadsheet program saves it, with the results")
            return Broken(text.format(cell=_place(formula)), wanted)
        if isinstance(value, str):
            return value
        text = _("numbers and dates in cells become text as they are stored, such as 0.5 and 2024-07-26")
        self.reading.say(self.path, text)
        return _as_text(value)


def _place(cell: Any) -> str:
    return str(getattr(cell, "coordinate", "?"))


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat(" ", "seconds")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return str(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


# Safety


class _Found(Exception):
    """The first element of an XML file, or its document type, was found."""


def _check_xml(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise DataError if an XML file declares a document type: entities can grow without limit. Excel writes none."""
    for name in archive.namelist():
        if name.lower().endswith((".xml", ".rels")) and _has_doctype(archive, name):
            fix = _("Open it in a spreadsheet program and save it again as .xlsx, or export it as CSV (UTF-8).")
            what = _("The Excel file declares XML entities, which are not read.")
            raise DataError(what, where=path, found="DOCTYPE", fix=fix)


def _has_doctype(archive: zipfile.ZipFile, name: str) -> bool:
    found: list[bool] = []

    def stop(is_doctype: bool) -> None:
        found.append(is_doctype)
        raise _Found

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = lambda *_facts: stop(True)
    parser.StartElementHandler = lambda *_facts: stop(False)
    try:
        with archive.open(name) as file:
            while data := file.read(CHUNK):
                parser.Parse(data)
    except Exception:  # the first element, or damage, which is reported when the sheet is read
        pass
    return found[:1] == [True]


def _contains(archive: zipfile.ZipFile, name: str, wanted: bytes) -> bool:
    try:
        with archive.open(name) as file:
            before = b""
            while data := file.read(CHUNK):
                if wanted in before + data:
                    return True
                before = data[-len(wanted) :]
    except Exception:  # damage, which is reported when the sheet is read
        pass
    return False
