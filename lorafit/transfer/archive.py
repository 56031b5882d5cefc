"""Archives: deterministic zip files of a folder, and safe extraction of zip and tar.gz files.

The same folder gives the same bytes: names are sorted, and times and owners are not stored. Extraction writes only
regular files, and only below the target folder. Archives from any source are accepted; SageMaker writes tar.gz.
"""

import contextlib
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from lorafit.atomic import disk_errors, ensure_disk_space
from lorafit.errors import RunError
from lorafit.messages import _
from lorafit.paths import is_stream, open_for_user
from lorafit.units import GIB, bytes_text

MOST_FILES, MOST_BYTES = 100_000, 64 * GIB  # limits after extraction; no lorafit bundle is larger
CHUNK = 1 << 20  # bytes
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that the zip format can store
PACKED_ALREADY = {".safetensors", ".gz", ".zst", ".parquet", ".whl", ".zip"}
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError,
           NotImplementedError, RuntimeError, ValueError)  # raised for a corrupt, encrypted or unsupported archive  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A file in an archive. `size` is the length in bytes that the archive declares. `open` returns a reader."""

    name: str
    size: int
    plain: bool  # a regular file: neither a link nor a device nor sparse
    open: Callable[[], IO[bytes] | None]


def pack(folder: Path, target: Path) -> None:
    """Write all files of `folder` into the zip `target`, which the user named with --output. Raises DiskError."""
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    with open_for_user(target, "--output") as file:
        if not is_stream(target):
            _write_zip(files, file)
            return
        with tempfile.TemporaryFile() as whole:  # a zip needs a file with positions
            _write_zip(files, whole)
            whole.seek(0)
            shutil.copyfileobj(whole, file, CHUNK)


def _write_zip(files: list[tuple[str, Path]], file: IO[bytes]) -> None:
    with zipfile.ZipFile(file, "w", compresslevel=6) as archive:
        for name, path in files:
            entry = zipfile.ZipInfo(os.fsencode(name).decode("utf-8", "replace"), EPOCH)  # also in an ASCII locale
            entry.compress_type = zipfile.ZIP_STORED if path.suffix in PACKED_ALREADY else zipfile.ZIP_DEFLATED
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.create_system = 3  # Unix on every system, so that the bytes are the same
            with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as packed:
                shutil.copyfileobj(source, packed, CHUNK)


def unpack(archive: Path, folder: Path) -> None:
    """Extract `archive` into the empty `folder`. Raises RunError if the archive is damaged or unsafe, and DiskError."""
    with _as_run_error(archive), _members(archive) as members:
        checked = _check(members)
        ensure_disk_space(folder, sum(member.size for member in checked))
        for member in checked:
            target = folder / member.name
            with disk_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                _write(member, target)


def read_member(archive: Path, name: str, most_bytes: int) -> bytes | None:
    """Return the content of `name` in a zip, or None if it is absent.

    Raises RunError if the zip is damaged or the file is larger than `most_bytes`.
    """
    with _as_run_error(archive), zipfile.ZipFile(archive) as inside:
        if name not in inside.namelist():
            return None
        with inside.open(name) as source:
            content = source.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise ValueError(_("{file} is larger than {size}").format(file=name, size=bytes_text(most_bytes)))
        return content


def is_archive(path: Path) -> bool:
    """Return whether unpack() supports `path`, judged by the file name."""
    return path.name.lower().endswith((".zip", ".tar.gz", ".tgz"))


@contextlib.contextmanager
def _as_run_error(archive: Path) -> Iterator[None]:
    """Convert errors from a damaged or unsafe archive to RunError."""
    try:
        yield
    except DAMAGED as error:
        raise RunError(
            _("The archive is damaged, or not safe to unpack."),
            where=archive,
            found=str(error) or type(error).__name__,
            fix=_("Download or create it again; nothing from it was kept."),
        ) from None


@contextlib.contextmanager
def _members(archive: Path) -> Iterator[Iterable[Member]]:
    if archive.name.lower().endswith((".tar.gz", ".tgz")):
        with tarfile.open(archive, "r:gz") as tar:
            yield (_of_tar(tar, info) for info in tar if not info.isdir())
    else:
        with zipfile.ZipFile(archive) as inside:
            yield [_of_zip(inside, info) for info in inside.infolist() if not info.filename.endswith("/")]


def _of_zip(inside: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    # orig_filename, because zipfile truncates `filename` at a null byte.
    return Member(info.orig_filename, info.file_size, kind in (0, stat.S_IFREG), lambda: inside.open(info))


def _of_tar(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    name = info.name.removeprefix("./")
    return Member(name, info.size, info.isreg() and not info.issparse(), lambda: tar.extractfile(info))


def _check(members: Iterable[Member]) -> list[Member]:
    """Return all of `members`. Raises ValueError at the first member that is unsafe or exceeds the limits."""
    checked: list[Member] = []
    seen: set[str] = set()
    total = 0
    for member in members:
        total += member.size
        key = unicodedata.normalize("NFC", member.name).casefold()  # macOS ignores both in file names
        if not member.plain or not _stays_inside(member.name):
            raise ValueError(
                _("outside the archive's folder, or not a regular file: {name}").format(name=repr(member.name))
            )
        if key in seen:
            raise ValueError(_("duplicate name: {name}").format(name=repr(member.name)))
        if len(checked) >= MOST_FILES or total > MOST_BYTES:
            raise ValueError(
                _("more than {files} files, or larger than {size}").format(
                    files=MOST_FILES, size=bytes_text(MOST_BYTES)
                )
            )
        seen.add(key)
        checked.append(member)
    return checked


def _stays_inside(name: str) -> bool:
    outside = PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts
    return bool(name) and not outside and re.search(r"[\\\0]|^[A-Za-z]:", name) is None


def _write(member: Member, target: Path) -> None:
    """Extract one file. Raises ValueError if its length differs from the declared size."""
    source = member.open()
    if source is None:
        raise ValueError(repr(member.name))
    written = 0
    with source, target.open("xb") as file:
        while (chunk := source.read(CHUNK)) and written <= member.size:
            written += file.write(chunk)
    if written != member.size:
        raise ValueError(_("{file}: size differs from the one recorded in the archive").format(file=member.name))
