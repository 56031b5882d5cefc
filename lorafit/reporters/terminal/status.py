"""Status messages until a result exists: one changing line on a terminal, occasional lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from lorafit.messages import _
from lorafit.progress import ProgressCallback
from lorafit.reporters.terminal.progress import ongoing

LINE_SECONDS = 10.0  # between lines that do not go to a terminal


@contextmanager
def status_line(notes: Console) -> Iterator[ProgressCallback]:
    """Yield a function that shows on `notes` what the program is doing."""
    if notes.is_interactive:
        with notes.status(_("Getting ready ...")) as status:
            yield lambda text: status.update(Text(ongoing(text)))
        return
    told_at = -LINE_SECONDS

    def say(text: str) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= LINE_SECONDS:
            notes.print(Text(ongoing(text)), soft_wrap=True)
            told_at = time.monotonic()

    yield say
