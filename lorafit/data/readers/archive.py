"""Zip archives: the check of their limits before anything is unpacked. Excel files are zip archives too."""

import lzma
import struct
import zipfile
import zlib
from pathlib import Path

from lorafit.errors import DataError
from lorafit.messages import _
from lorafit.units import bytes_text, count_text

MOST_MEMBERS = 10_000
MOST_BYTES = 1 << 34  # unpacked, of all members together
MOST_RATIO, RATIO_FROM_BYTES = 200, 1 << 24  # unpacked size by packed size, of members above this size
# What `zipfile` raises for a damaged archive, an unknown method of compression or a name that is no text.
ZIP_ERRORS = (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError,
              RuntimeError, ValueError, LookupError, ArithmeticError)  # fmt: skip


def open_archive(path: Path, most_bytes: int = MOST_BYTES) -> zipfile.ZipFile:
    """Open the archive. Raises DataError if it is encrypted or beyond the limits, and ZIP_ERRORS if it is damaged."""
    archive = zipfile.ZipFile(path)
    if problem := _problem(archive.infolist(), most_bytes):
        archive.close()
        fix = _("Unpack it yourself if you trust it, and give the folder.")
        raise DataError(_("The zip archive is not unpacked."), where=path, found=problem, fix=fix)
    return archive


def _problem(members: list[zipfile.ZipInfo], most_bytes: int) -> str:
    """Return why the archive is not unpacked, or "" if nothing speaks against it."""
    unpacked = sum(member.file_size for member in members)
    if len(members) > MOST_MEMBERS:
        text = _("files: {count}, at most {most}")
        return text.format(count=count_text(len(members)), most=count_text(MOST_MEMBERS))
    if unpacked > most_bytes:
        return _("size unpacked: {size}, at most {most}").format(size=bytes_text(unpacked), most=bytes_text(most_bytes))
    for member in members:
        if member.flag_bits & 1:
            return _("{name} is encrypted").format(name=shown_name(member.filename))
        if member.file_size > max(RATIO_FROM_BYTES, MOST_RATIO * member.compress_size):
            text = _("{name} grows to {size}, more than {most} times its packed size")
            return text.format(name=shown_name(member.filename), size=bytes_text(member.file_size), most=MOST_RATIO)
    return ""


def shown_name(name: str) -> str:
    """Return the name of a member without characters that a terminal does not print."""
    return "".join(character if character.isprintable() else "?" for character in name)[:200]
