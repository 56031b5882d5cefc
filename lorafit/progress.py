"""The callback that long jobs report their progress to."""

from collections.abc import Callable

ProgressCallback = Callable[[str], None]


def ignore_progress(text: str) -> None:
    """Ignore the message."""
