"""Atomic writes of files and folders, and disk errors."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from lorafit.errors import DiskError
from lorafit.messages import _
from lorafit.units import bytes_text

MANIFEST = "manifest.json"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


REFUSED = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG,
           errno.ENXIO, errno.ENODEV, errno.EILSEQ)  # fmt: skip


WRITE_REFUSED = (*REFUSED, errno.EROFS, errno.EEXIST, errno.EFBIG)


FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone does not flush the drive's cache


TOKEN = os.urandom(4).hex()  # differs from an earlier process with the same PID, which is common in containers


HIDDEN = re.compile(r"\.(tmp|old)-([0-9]+)-([0-9a-f]+)-(.+)")


def disk_error(error: OSError, path: Path, flag: str = "--output_dir") -> DiskError:
    """Return a DiskError for `error` while writing `path`. The fix names `flag`, which sets the folder."""
    full = error.errno in DISK_FULL
    return DiskError(
        _("The disk is full.") if full else _("This file or folder cannot be written."),
        where=path,
        found=_("{problem}; {room} free").format(problem=error.strerror or error, room=bytes_text(_room_bytes(path))),
        fix=_("Free disk space, or choose another folder with {flag}.").format(flag=flag)
        if full
        else _("Choose a writable folder with {flag}.").format(flag=flag),
    )


@contextlib.contextmanager
def disk_errors(path: Path, flag: str = "--output_dir") -> Iterator[None]:
    """Convert write errors (DISK_FULL and WRITE_REFUSED) inside the block to a DiskError about `path`; others pass.

    Errors of a file outside the folder of `path` are read errors.
    """
    try:
        yield
    except Exception as error:
        if (cause := _system_error(error, DISK_FULL + WRITE_REFUSED)) is None:
            raise
        file = cause.filename and Path(os.fsdecode(cause.filename)).absolute()
        if file and cause.errno in REFUSED and not file.is_relative_to(path.absolute().parent):
            raise read_error(cause, cause.filename) from error
        raise disk_error(cause, path, flag) from error


def _system_error(error: Exception, numbers: tuple[int, ...]) -> OSError | None:
    """Return `error` as an OSError if it has one of the error numbers `numbers`, else None.

    safetensors and tokenizers (Rust) put the number only in the text.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error if error.errno in numbers else None
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number and int(number[1]) in numbers else None


def read_error(error: OSError, path: object) -> DiskError:
    """Return a DiskError for `error` while reading `path`."""
    refused = error.errno in (errno.EACCES, errno.EPERM)
    return DiskError(
        _("This file or folder cannot be read."),
        where=path,
        found=error.strerror or error,
        fix=_("Give your user permission to read it, or name another one.")
        if refused
        else _("Check the path and the disk."),
    )


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Convert read errors (REFUSED) inside the block to a DiskError about the file, else about `path`; others pass."""
    try:
        yield
    except Exception as error:
        if (cause := _system_error(error, REFUSED)) is None:
            raise
        raise read_error(cause, cause.filename or path) from error


def system_error(error: Exception) -> DiskError | None:
    """Return the DiskError for an error of files and disks that no other code has converted; None for other errors."""
    cause = _system_error(error, REFUSED + WRITE_REFUSED + DISK_FULL)
    if cause is None:
        return None
    if cause.errno in REFUSED:
        return read_error(cause, cause.filename or "-")
    return disk_error(cause, Path(os.fsdecode(cause.filename or "/dev/stdout")))


def ensure_writable(folder: Path, flag: str = "--output_dir") -> None:
    """Raise DiskError unless `folder` can be created and files can be written in it.

    The check creates and deletes a temporary folder in `folder` or its nearest existing parent.
    """
    try:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        tempfile.TemporaryDirectory(dir=there, prefix=".writable-").cleanup()
    except OSError as error:
        raise disk_error(error, folder, flag) from error


def ensure_disk_space(folder: Path, needed_bytes: int, what: str | None = None, fix: str | None = None) -> None:
    """Raise DiskError if the disk of `folder` has less than `needed_bytes` free; an unknown amount passes.

    `what` and `fix` are the texts of the error; None: those for a training.
    """
    room = _room_bytes(folder)
    if room is not None and room < needed_bytes:
        raise DiskError(
            what or _("Not enough disk space for this run."),
            where=folder,
            found=_("{room} free, about {needed} needed").format(
                room=bytes_text(room), needed=bytes_text(needed_bytes)
            ),
            fix=fix
            or _(
                "Free disk space, choose another folder with --output_dir, or keep fewer "
                "checkpoints: --keep_checkpoints 1."
            ),
        )


def _room_bytes(path: Path) -> int | None:
    for folder in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free
    return None


@contextlib.contextmanager
def atomic_folder(
    target: Path, parents: bool = True, flag: str = "--output_dir", manifest: bool = True
) -> Iterator[Path]:
    """Yield a temporary folder that becomes `target` if the block succeeds and is deleted if it raises.

    An older `target` stays untouched until the new folder is complete and durable. Raise DiskError. Without `parents`, the
    folder above the parent of `target` must exist: one that was moved is not created again at its old place. `flag` sets the folder,
    for errors. Without `manifest`, verify() cannot check the folder.
    """
    temporary = hidden_path(target, "tmp")
    with disk_errors(target, flag):
        target.parent.mkdir(parents=parents, exist_ok=True)
        _undo(target)
        temporary.mkdir()
        try:
            yield temporary
            _seal(temporary, manifest)
            _swap_in(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextlib.contextmanager
def atomic_file(target: Path, flag: str = "--output_dir") -> Iterator[Path]:
    """Yield a temporary path to write to; the file becomes `target` if the block succeeds.

    An older `target` stays until then. `flag` sets the folder, for errors. Raise DiskError.
    """
    temporary = hidden_path(target, "tmp")
    with disk_errors(target, flag):
        try:
            yield temporary
            make_durable(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def verify(folder: Path) -> str | None:
    """Return a message if `folder` is not as atomic_folder() wrote it, else None. Files added later are ignored."""
    try:
        entries = list(_entries(json.loads((folder / MANIFEST).read_text("utf-8"))))
    except FileNotFoundError:
        return _("{file} is missing").format(file=MANIFEST)
    except (OSError, ValueError, RecursionError) as error:
        return _("{file} cannot be read: {problem}").format(file=MANIFEST, problem=error)
    return next(filter(None, (_mismatch(folder / name, name, size, digest) for name, size, digest in entries)), None)


def restore_set_aside(folder: Path) -> None:
    """Restore intact folders in `folder` that a process set aside before it died without replacing them."""
    for path, kind, name in leftovers(folder):
        if kind == "old" and not (folder / name).exists() and verify(path) is None:
            with contextlib.suppress(OSError):
                path.rename(folder / name)


def _seal(folder: Path, manifest: bool) -> None:
    """Flush all files to the disk, and write the `manifest` after all others if there is to be one."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    for path in (*files, *(p for p in folder.rglob("*") if p.is_dir())):
        make_durable(path)
    if manifest:
        entries = {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": _digest(p)} for p in files}
        (folder / MANIFEST).write_text(json.dumps({"files": entries}, indent=1) + "\n", "utf-8")
        make_durable(folder / MANIFEST)
    make_durable(folder)


def _undo(target: Path) -> None:
    """Undo what this process left of an unfinished atomic_folder(target), whose parent was moved meanwhile."""
    temporary, aside = (hidden_path(target, kind) for kind in ("tmp", "old"))
    if aside.is_dir() and not target.exists():
        aside.rename(target)
    for path in (temporary, aside):
        shutil.rmtree(path, ignore_errors=True)


def _swap_in(temporary: Path, target: Path) -> None:
    aside = hidden_path(target, "old")
    if target.is_dir():
        target.rename(aside)
    try:
        temporary.rename(target)
    except OSError:
        if aside.is_dir():
            aside.rename(target)
        raise
    make_durable(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def make_durable(path: Path) -> None:
    """Flush a file or folder to the disk. Raise OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _sync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno == errno.EINVAL):  # network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    if FULL_SYNC is not None:
        with contextlib.suppress(OSError):  # exFAT and network disks do not support F_FULLFSYNC
            fcntl.fcntl(descriptor, FULL_SYNC)
            return
    os.fsync(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entries(manifest: Any) -> Iterator[tuple[str, int, str]]:
    """Yield name, bytes and digest of each file. Raise ValueError if the manifest is not valid."""
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not files:
        raise ValueError(_("the list of files is missing"))
    for name, facts in files.items():
        size, digest = (facts.get("bytes"), facts.get("sha256")) if isinstance(facts, dict) else (None, None)
        outside = PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts
        if outside or type(size) is not int or not isinstance(digest, str):
            raise ValueError(repr(name))
        yield name, size, digest


def _mismatch(path: Path, name: str, size: int, digest: str) -> str | None:
    try:
        found = path.stat().st_size
        if found != size:
            return _("{file} has {found} bytes instead of {size}").format(file=name, found=found, size=size)
        return (
            None if _digest(path) == digest else _("{file} was changed: its SHA-256 checksum differs").format(file=name)
        )
    except FileNotFoundError:
        return _("{file} is missing").format(file=name)
    except (OSError, ValueError) as error:
        return _("{file} cannot be read: {problem}").format(file=name, problem=error)


def hidden_path(target: Path, kind: str) -> Path:
    """Return a hidden path beside `target` that only this process uses; `kind` is "tmp" or "old"."""
    return target.parent / f".{kind}-{os.getpid()}-{TOKEN}-{target.name}"


def leftovers(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield hidden folders and files of dead processes: path, kind ("tmp" or "old") and the intended name."""
    for path in list_folder(folder):
        parts = HIDDEN.fullmatch(path.name)
        if parts and not _is_alive(int(parts[2]), parts[3]):
            yield path, parts[1], parts[4]


def _is_alive(pid: int, token: str) -> bool:
    if pid == os.getpid():
        return token == TOKEN
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def list_folder(folder: Path) -> list[Path]:
    """Return the sorted entries of `folder`; none if it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
