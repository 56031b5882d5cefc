"""Line breaking for rich between Chinese characters; rich itself breaks only at spaces, which Chinese lacks.

A line never breaks before closing or after opening punctuation. Latin words and numbers stay whole.
"""

import re
from collections.abc import Iterator

import rich._wrap

WIDE = "\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef"
OPENING = "（《「『【“‘"
CLOSING = "、。，；：！？）》」』】”’…"
PIECE = re.compile(rf"\s*[{OPENING}]*(?:[^\s{WIDE}{OPENING}{CLOSING}]+|[{WIDE}])?[{CLOSING}]*\s*")


def words(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the pieces between which `text` may break, as (start, end, piece), each with its trailing spaces."""
    for piece in PIECE.finditer(text):
        if piece[0]:
            yield piece.start(), piece.end(), piece[0]


def patch_rich() -> None:
    """Replace rich's word splitting for everything that it prints. rich has no setting for this, only this function."""
    rich._wrap.words = words
