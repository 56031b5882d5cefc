"""Download progress: the download runs in a thread while the size of its folder is reported."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from lorafit.messages import _
from lorafit.progress import ProgressCallback
from lorafit.units import bytes_text, seconds_text

Result = TypeVar("Result")
FIRST_SECONDS = 2.0  # until the first report; later intervals are a tenth of the elapsed time


def download_with_progress(
    fetch: Callable[[], str], folder: Path, total_bytes: int | None, say: ProgressCallback
) -> str:
    """Run `fetch` in a thread and return its result or raise its error. Report the growth of `folder` to `say`.

    `total_bytes` is the final size of the files, None if unknown. Files that are in `folder` at the start do not count.
    """
    before, began = _bytes_in(folder), time.monotonic()
    fetched = in_thread(fetch)
    while True:
        passed = time.monotonic() - began
        with suppress(TimeoutError):
            return fetched.result(timeout=max(FIRST_SECONDS, passed / 10))
        if fetched.done():  # fetch itself raised the TimeoutError
            return fetched.result()
        say(_progress_text(_bytes_in(folder) - before, total_bytes and total_bytes - before, time.monotonic() - began))


def in_thread(job: Callable[[], Result]) -> Future[Result]:
    """Run `job` in a daemon thread, so that Ctrl-C ends the program at once. Return the future of its result."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(job())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _progress_text(done: int, total: int | None, seconds: float) -> str:
    """Return the progress text, e.g. `1.2 GiB of 6.0 GiB, about 3 min 10 s left`."""
    if not total or done > total:
        return _("{size} downloaded").format(size=bytes_text(max(done, 0)))
    if done <= 0:
        return _("{done} of {total}").format(done=bytes_text(0), total=bytes_text(total))
    left = seconds_text(seconds * (total - done) / done)
    text = _("{done} of {total}, about {left} left")
    return text.format(done=bytes_text(done), total=bytes_text(total), left=left)


def _bytes_in(folder: Path) -> int:
    """Return the size of all files below `folder`, without symbolic links: the hub cache links to its own files."""
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # the file was just renamed
            size += 0 if path.is_symlink() or path.is_dir() else path.stat().st_size
    return size
