"""The only way to the terminal: it shows control characters of answers, file names and errors as codes, not raw.

Such texts are not lorafit's own, and an escape code in them could change colors, the title or earlier lines.
"""

import errno
import os
import sys
from collections.abc import Iterable
from typing import TextIO

import rich.text
from rich.console import Console

from lorafit.data.text_checks import visible


def open_console(stderr: bool = False) -> Console:
    """Return a console on stdout or stderr that prints brackets and colons as they are, without rich's markup."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def print_safe(text: object, end: str = "\n", stderr: bool = False) -> None:
    """Print `text` at once, and flush."""
    file: TextIO | None = sys.stderr if stderr else sys.stdout
    print(visible(str(text)), end=end, file=file, flush=True)


def show_pieces(pieces: Iterable[str]) -> None:
    """Print the pieces of one text as they arrive, and a line end. A line end may be split between pieces."""
    held = ""
    for piece in pieces:
        text = held + piece
        held = "\r" if text.endswith("\r") else ""
        print_safe(text.removesuffix("\r"), end="")
    print_safe(held)


def patch_rich() -> None:
    """Make every text that rich prints visible, and a closed pipe an error. rich has no settings for this.

    rich alone drops a few control characters but not the escape character, and exits with code 1 when a pipe is closed.
    """
    rich.text.strip_control_codes = visible  # type: ignore[attr-defined, assignment]
    Console.on_broken_pipe = _raise_broken_pipe  # type: ignore[method-assign, assignment]


def _raise_broken_pipe(console: Console) -> None:
    console.quiet = True  # a live display would write again when it ends
    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
