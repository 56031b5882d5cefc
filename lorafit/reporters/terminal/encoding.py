"""Output to a terminal whose encoding lacks a character, such as GBK, Latin-1 or ASCII: a similar text, never an error."""

import codecs
import contextlib
import json
import os
import sys
import unicodedata
from collections.abc import Iterable
from typing import TextIO

from lorafit.data.text_checks import STRANGE
from lorafit.messages import language

HANDLER = "lorafit-fallback"  # the name of the error handler among Python's codecs
MARKS = {
    "✓": "OK", "⚠": "!", "\ufe0f": "", "✗": "X", "→": "->", "·": "-", "•": "*", "×": "x", "°": " deg",
    "⟦": "[[", "⟧": "]]", "⟨": "<", "⟩": ">", "…": "...", "“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-",
    **dict.fromkeys("─━╸╺", "-"), **dict.fromkeys("│┃", "|"), **dict.fromkeys("├└┌┐┘┤┬┴┼╭╮╯╰", "+"),
    **dict(zip("▁▂▃▄▅▆▇█▏", "__--==##|", strict=True)),
}  # fmt: skip
SPINNER = range(0x2800, 0x2900)  # patterns of braille, which rich's spinner shows
NO_CHINESE = "This terminal's encoding ({encoding}) has no simplified Chinese. Set PYTHONUTF8=1, or use --lang en."


def use_fallbacks(streams: Iterable[TextIO | None] | None = None) -> None:
    """Let stdout and stderr write a similar text for a character that their encoding lacks.

    Stdin gets a replacement for bytes that it cannot decode. If the simplified Chinese of the messages cannot be shown,
    stderr says so once.
    """
    codecs.register_error(HANDLER, _fallback)
    outputs = [sys.stdout, sys.stderr] if streams is None else list(streams)
    for stream, errors in [*((stream, HANDLER) for stream in outputs), (sys.stdin, "replace")]:
        with contextlib.suppress(AttributeError, ValueError, OSError):  # None, replaced, or closed
            stream.reconfigure(errors=errors)  # type: ignore[union-attr]
    lacking = [
        stream for stream in outputs if stream is not None and language() == "zh" and not _writes(stream, "训练")
    ]
    if lacking:
        print(NO_CHINESE.format(encoding=lacking[0].encoding), file=sys.stderr)


def replace_missing_streams() -> None:
    """Put an empty input and an output that drops everything in place of standard streams that are closed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            free = os.open(os.devnull, os.O_RDWR)  # takes the free descriptor, so that no other file does
            os.set_inheritable(free, True)
            setattr(sys, name, os.fdopen(free, mode, encoding="utf-8"))


def similar(text: str) -> str:
    """Return `text` in ASCII: marks and letters by similar ones, any other character as a question mark."""
    return "".join(map(_similar, text))


def writable_json(text: str, stream: TextIO) -> str:
    """Return JSON with escapes instead of control characters and those that the encoding of `stream` lacks.

    The values are the same.
    """
    text = STRANGE.sub(lambda found: json.dumps(found[0])[1:-1], text)
    if _writes(stream, text):
        return text
    return "".join(one if one.isascii() else json.dumps(one)[1:-1] for one in text)


def _fallback(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return similar(error.object[error.start : error.end]), error.end


def _similar(character: str) -> str:
    if character in MARKS or ord(character) in SPINNER:
        return MARKS.get(character, "*")
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return character if character.isascii() else plain or "?"


def _writes(stream: TextIO, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
