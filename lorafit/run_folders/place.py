"""The place of a run's folder while it is written: the folder may be moved or deleted meanwhile."""

import fcntl
import os
import sys
from pathlib import Path

PATH_BYTES = 1024  # the longest path that F_GETPATH returns


class RunPlace:
    """The folder that `path` names now, recognized by device and inode wherever it is moved to."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._identity = _identity(os.fstat(self._descriptor))
        self.path = path

    def close(self) -> None:
        """Close the folder; its path is not followed any longer."""
        os.close(self._descriptor)

    def find(self) -> Path | None:
        """Return the folder's present path, also as `path`; None if it was deleted or cannot be found."""
        if not self._is_at(self.path):
            found = _path_of(self._descriptor)
            if found is None or not self._is_at(found):
                return None
            self.path = found
        return self.path

    def _is_at(self, path: Path) -> bool:
        try:
            return _identity(path.stat()) == self._identity
        except OSError:
            return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _path_of(descriptor: int) -> Path | None:
    """Return the present path of an open folder, where the system tells it (Linux, macOS)."""
    try:
        if sys.platform == "darwin":
            return Path(os.fsdecode(fcntl.fcntl(descriptor, 50, bytes(PATH_BYTES)).rstrip(b"\0")))  # 50: F_GETPATH
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    except OSError:
        return None
