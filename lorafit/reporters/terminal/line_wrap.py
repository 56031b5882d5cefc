"""Where may a line of text be broken? rich knows spaces only, and Chinese has none: there also between two characters.

Never before punctuation that closes, nor behind one that opens; Latin words and numbers stay whole.
"""

import re
from collections.abc import Iterator

import rich._wrap

WIDE = "\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef"
OPENING = "（《「『【“‘"
CLOSING = "、。，；：！？）》」』】”’…"
PIECE = re.compile(rf"\s*[{OPENING}]*(?:[^\s{WIDE}{OPENING}{CLOSING}]+|[{WIDE}])?[{CLOSING}]*\s*")


def words(text: str) -> Iterator[tuple[int, int, str]]:
    """The pieces that `text` may be broken into, each as (start, end, piece) with the spaces behind it."""
    for piece in PIECE.finditer(text):
        if piece[0]:
            yield piece.start(), piece.end(), piece[0]


def teach_rich() -> None:
    """Let everything that rich prints be broken so. It has no setting for that; this is the one place where it decides."""
    rich._wrap.words = words
