"""Progress messages of long jobs: the callback that takes them, and generators that yield them and return a result."""

from collections.abc import Callable, Generator
from typing import TypeVar

Result = TypeVar("Result")
ProgressCallback = Callable[[str], None]


def ignore_progress(text: str) -> None:
    """Ignore the message."""


def exhaust(texts: Generator[str, None, Result], say: ProgressCallback = ignore_progress) -> Result:
    """Run the generator to its end, pass its messages to `say`, and return its result."""
    while True:
        try:
            say(next(texts))
        except StopIteration as done:
            result: Result = done.value
            return result
