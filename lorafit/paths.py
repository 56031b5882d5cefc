"""The user's cache folder, and files that a user names: where output goes, and how it is written."""

import contextlib
import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lorafit.atomic import DISK_FULL, disk_error, ensure_writable, hidden_path, leftovers, make_durable
from lorafit.errors import ConfigError, DiskError
from lorafit.messages import _

STDOUT = "-"  # the file name that means stdout


def cache_folder() -> Path:
    """Return the program's cache folder: LORAFIT_CACHE, XDG_CACHE_HOME/lorafit, or the system's default."""
    if own := os.environ.get("LORAFIT_CACHE"):
        return user_path(own).absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return user_path(xdg).absolute() / "lorafit"
    home = os.path.expanduser("~")
    if home == "~":  # a user ID without a name, and no HOME
        return _temporary_cache()
    return Path(home) / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "lorafit"


def _temporary_cache() -> Path:
    """Return a cache folder below the system's temporary folder that only this user can write."""
    folder = Path(tempfile.gettempdir()) / f"lorafit-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        fix = _("Set the variable {name} to a folder of your own.").format(name="LORAFIT_CACHE")
        raise ConfigError(_("This user has no home folder, and the cache folder belongs to another user."),
                          where=folder, fix=fix)  # fmt: skip
    return folder


def user_path(text: str) -> Path:
    """Return `text` as a path, with a home folder in place of `~` or `~user`. Raise ConfigError if that is unknown."""
    if "\0" in text:
        raise ConfigError(_("A file name cannot contain the character U+0000."), found=repr(text))
    path = Path(os.path.expanduser(text))
    if text.startswith("~") and str(path).startswith("~") and not path.exists():
        fix = _("Write the whole path. For a file whose name starts with ~, put ./ before the name.")
        raise ConfigError(_("The home folder is unknown."), found=text, fix=fix)
    return path


def check_for_user(path: Path, flag: str) -> None:
    """Raise DiskError unless open_for_user() can write to `path`. Call this before the content is computed."""
    with _user_file_errors(path, flag):
        target = _resolved(path)
        if path.is_dir():
            fix = _("Give a file name with {flag}.").format(flag=flag)
            raise DiskError(_("A file cannot replace a folder."), where=path, fix=fix)
        if is_stdout(path):
            return
        if path.exists():
            _require_writable(path)
            return
    try:
        ensure_writable(target.parent)
    except DiskError as error:
        error.fix = _file_fix(flag)
        raise


def _resolved(path: Path) -> Path:
    """Return the file that `path` leads to, which need not exist. Raise OSError for a circle of links."""
    with contextlib.suppress(FileNotFoundError):
        path.stat()
    return Path(os.path.realpath(path))


def _can_write(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _require_writable(path: Path) -> None:
    if not _can_write(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def is_stdout(path: Path) -> bool:
    """Return whether `path` is "-", or another name of the file that stdout is, such as /dev/stdout."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return str(path) == STDOUT or os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    return str(path) == STDOUT


def is_stream(path: Path) -> bool:
    """Return whether `path` is written into and never replaced: stdout, a device, a FIFO, or a link to one."""
    with contextlib.suppress(OSError):
        mode = path.stat().st_mode
        special = not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
        return special or is_stdout(path) or os.path.realpath(path.parent).startswith("/proc/")  # also /dev/fd
    return is_stdout(path)


@contextlib.contextmanager
def open_for_user(path: Path, flag: str) -> Iterator[IO[bytes]]:
    """Yield a file for content that belongs at `path`, which the user gave with `flag`. Raise DiskError.

    Streams are written into, and links are followed. A plain file is replaced whole when the block succeeds, and keeps
    its mode and owner. If the block raises, the file stays as it was and nothing is left beside it.
    """
    with _user_file_errors(path, flag):
        if is_stdout(path):
            sys.stdout.flush()
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        elif is_stream(path):
            with path.open("wb", buffering=0) as stream:
                yield stream
        else:
            with _whole_file(_resolved(path)) as file:
                yield file


def write_for_user(path: Path, content: str | bytes, flag: str) -> None:
    """Write `content` to `path` as open_for_user() does. Raise DiskError."""
    with open_for_user(path, flag) as file:
        file.write(content.encode("utf-8", "replace") if isinstance(content, str) else content)


def append_for_user(path: Path, content: bytes) -> None:
    """Append `content` to the file or stream `path`, or nothing of it. Raise OSError."""
    if is_stdout(path):
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    with path.open("ab", buffering=0) as file:
        before = os.fstat(file.fileno())
        try:
            while content:
                content = content[file.write(content) or 0 :]
        except OSError:
            if stat.S_ISREG(before.st_mode):
                file.truncate(before.st_size)
            raise


@contextlib.contextmanager
def _whole_file(target: Path) -> Iterator[IO[bytes]]:
    """Yield a new file whose content becomes that of the plain file `target` if the block succeeds."""
    old = target.stat() if target.exists() else None
    if old is not None:
        _require_writable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    name = target.with_name(target.name[:50])  # a hidden name is longer than the name
    for path, kind, intended in leftovers(target.parent):
        if kind == "tmp" and intended == name.name and path.is_file():
            path.unlink(missing_ok=True)
    temporary = hidden_path(name, "tmp")
    if old is not None and not _can_write(target.parent):  # only the file itself can be written
        temporary = Path(tempfile.gettempdir()) / temporary.name
    try:
        with temporary.open("xb") as file:
            yield file
        make_durable(temporary)
        _put(temporary, target, old)
    finally:
        temporary.unlink(missing_ok=True)


def _put(temporary: Path, target: Path, old: os.stat_result | None) -> None:
    """Rename `temporary` to `target` with the mode and owner `old`; copy its content if that is not possible."""
    try:
        if old is not None:
            if (old.st_uid, old.st_gid) != (temporary.stat().st_uid, temporary.stat().st_gid):
                os.chown(temporary, old.st_uid, old.st_gid)
            temporary.chmod(stat.S_IMODE(old.st_mode))
        temporary.replace(target)
    except OSError as error:  # another's file, a mount point, or a folder on another disk
        if old is None or error.errno not in (errno.EPERM, errno.EACCES, errno.EBUSY, errno.EXDEV):
            raise
        shutil.copyfile(temporary, target)


@contextlib.contextmanager
def _user_file_errors(path: Path, flag: str) -> Iterator[None]:
    """Convert write errors about `path` to a DiskError that names `flag`; a closed pipe and errors of other files pass."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        target = Path(os.path.realpath(path))
        temporary = hidden_path(target.with_name(target.name[:50]), "tmp")
        own = {path, target, temporary, *target.parents}
        if error.errno is None or (error.filename is not None and Path(error.filename) not in own):
            raise
        written = disk_error(error, path, flag)
        written.fix = _file_fix(flag, error.errno in DISK_FULL)
        raise written from error


def _file_fix(flag: str, full: bool = False) -> str:
    if full:
        return _("Free disk space, or use {flag} to name a file on another disk.").format(flag=flag)
    return _("Use {flag} to name a file in a folder you can write to.").format(flag=flag)


def require_utf8_name(folder: str | Path) -> None:
    """Raise ConfigError if the libraries that read and write models would look for `folder` under another name.

    Python writes a name in the encoding of the locale; those libraries write UTF-8.
    """
    if not str(folder).isascii() and not _names_are_utf8():
        encoding = sys.getfilesystemencoding()
        raise ConfigError(
            _("This folder name needs a UTF-8 locale; the locale here has {encoding}.").format(encoding=encoding),
            found=folder,
            fix=_other_locale(),
        )


def _names_are_utf8() -> bool:
    return sys.getfilesystemencoding().lower() in ("utf-8", "utf8")


def _other_locale() -> str:
    return _("Run `export LC_ALL=C.UTF-8` first, or use an English name.")


def require_text(name: str, value: str) -> None:
    """Raise ConfigError if the setting `name` has a NUL, or bytes that are not UTF-8."""
    try:
        value.encode("utf-8", "surrogateescape").decode("utf-8")  # in an ASCII locale, UTF-8 arrives as escaped bytes
    except UnicodeError:
        fix = _("Rename the file or folder, or write the text in UTF-8.")
        if not _names_are_utf8():  # a name in UTF-8, read in another encoding
            fix = _other_locale()
        raise ConfigError(_("This setting is not UTF-8 text."), where=name, found=ascii(value), fix=fix) from None
    if "\0" in value:
        fix = _("Remove the character.")
        raise ConfigError(_("A setting cannot contain the character U+0000."), where=name, found=ascii(value), fix=fix)
