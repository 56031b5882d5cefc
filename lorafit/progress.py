"""The callback that long jobs report their progress to."""

from collections.abc import Callable

Say = Callable[[str], None]


def silent(text: str) -> None:
    """Ignore the message."""
