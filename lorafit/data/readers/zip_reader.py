"""Reader of the data files in a zip archive. Each is unpacked to a temporary folder while it is read."""

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from lorafit.atomic import DISK_FULL
from lorafit.data.readers.archive import ZIP_ERRORS, open_archive, shown_name
from lorafit.data.readers.reading import Reading
from lorafit.data.readers.registry import Row, is_data_file, read_file, supported_extensions
from lorafit.errors import DataError
from lorafit.messages import _, listed

ZIP = ".zip"


def zip_members(path: Path) -> list[str]:
    """Return the names of the data files in the archive that are not empty, sorted. Raises DataError."""
    try:
        with open_archive(path) as archive:
            members, everything = [info.filename for info in archive.infolist() if _is_data(info)], archive.namelist()
    except ZIP_ERRORS as error:
        raise _damaged(path, error) from None
    if members:
        return sorted(members)
    found = listed([shown_name(name) for name in everything[:10]]) or _("empty archive")
    fix = _("Give an archive with data files: {known}.").format(known=supported_extensions())
    raise DataError(_("The zip archive contains no data file."), where=path, found=found, fix=fix)


def _is_data(info: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(info.filename)
    hidden = any(part.startswith((".", "~$", "__MACOSX")) for part in path.parts if part != "..")
    return not info.is_dir() and info.file_size > 0 and not hidden and is_data_file(Path(path.name))


def member_path(path: Path, member: str) -> str:
    """Return the path of a member as users see it: `data.zip/train.jsonl`."""
    return f"{path}/{shown_name(member)}"


def read_member(path: Path, member: str, reading: Reading) -> Iterator[Row]:
    """Yield the rows of a data file in the archive. Raises DataError if it cannot be read."""
    shown, inner = member_path(path, member), Reading(reading.encoding)
    with tempfile.TemporaryDirectory(prefix="lorafit-", ignore_cleanup_errors=True) as folder:
        unpacked = Path(
            folder, "member" + "".join(PurePosixPath(member).suffixes[-2:])
        )  # the name itself may be harmful
        try:
            with open_archive(path) as archive, archive.open(member) as source, unpacked.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        except ZIP_ERRORS as error:
            raise _damaged(path, error) from None
        try:
            for row in read_file(unpacked, inner):
                yield Row(row.value, shown, row.line)
        except DataError as error:
            where = (error.where or "").replace(str(unpacked), shown)
            raise DataError(error.what, where=where, found=error.found, fix=error.fix) from None
        finally:
            for _file, text in inner.notes:
                reading.say(shown, text)


def _damaged(path: Path, error: Exception) -> DataError:
    full = isinstance(error, OSError) and error.errno in DISK_FULL
    fix = _("Download or create the file again.")
    if full:
        fix = _("Free disk space, or unpack the archive yourself and give the folder.")
    return DataError(_("The zip archive cannot be unpacked."), where=path, found=str(error)[:300] or "zip", fix=fix)
