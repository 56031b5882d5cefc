"""Positions of the messages' texts in the text of a chat template, found by marks.

The conversation is rendered once more with a mark before and after each text of a message. The marks are characters
for private use, which templates copy. Without its marks, the result must equal the unmarked text. So a position is
known even if two messages have the same text, or if the template moves, trims, escapes or repeats a text.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from lorafit.data.conversation import END_OF_THOUGHT, TOOLS, Conversation, Message

PLANES = (0x100000, 0xF0000)  # private use; the second is used if the conversation contains characters of the first
PLANE_SIZE = 0xFFFD
CLOSE = PLANE_SIZE - 1  # offset of the mark behind a text

Render = Callable[[Conversation], str]


@dataclass(frozen=True)
class Piece:
    """A text of message number `message` (0 is the first) in the characters from `begin` to before `end`.

    `kind` is "thought", "words" or "call".
    """

    message: int
    kind: str
    begin: int
    end: int


@dataclass(frozen=True)
class MarkedText:
    """A text without its marks, and its pieces in order."""

    text: str
    pieces: list[Piece]

    def of(self, message: int) -> list[Piece]:
        """Return the pieces of one message."""
        return [piece for piece in self.pieces if piece.message == message]


KINDS = ("thought", "words", "call")


def render_marked(turns: Conversation, render: Render) -> MarkedText | None:
    """Return the text that `render` makes of `turns`, with its pieces; None if the marks cannot be read back.

    The errors of `render` pass.
    """
    said = "".join(turn.content + turn.calls + turn.thought for turn in turns)
    plane = next((plane for plane in PLANES if not _has_plane(said, plane)), None)
    if plane is None or len(KINDS) * len(turns) >= CLOSE:
        return None
    return _read(render([_marked(turn, i, plane) for i, turn in enumerate(turns)]), plane)


def _has_plane(text: str, plane: int) -> bool:
    return re.search(f"[{chr(plane)}-{chr(plane + PLANE_SIZE)}]", text) is not None


def _marked(turn: Message, number: int, plane: int) -> Message:
    """Return the message with marks around its texts. The definitions of tools stay as they are."""
    if turn.role == TOOLS:
        return turn

    def mark(text: str, kind: str) -> str:
        inside = text.strip()
        if not inside or kind == "tag":
            return text
        before, _inside, behind = text.partition(inside)
        return f"{before}{chr(plane + len(KINDS) * number + KINDS.index(kind))}{inside}{chr(plane + CLOSE)}{behind}"

    content = "".join(mark(text, kind) for text, kind in split_thought(turn.content))
    calls = json.dumps(_marked_calls(json.loads(turn.calls), mark), ensure_ascii=False) if turn.calls else ""
    return replace(turn, content=content, calls=calls, thought=mark(turn.thought, "thought"))


def split_thought(content: str) -> Iterator[tuple[str, str]]:
    """Yield the parts of a message's content, in order, each with its kind: "thought", "words" or "tag"."""
    head, tag, words = content.rpartition(END_OF_THOUGHT)
    if tag:
        before, opening, thought = head.rpartition("<think>")
        yield from ((before, "words"), (opening, "tag"), (thought, "thought"), (tag, "tag"))
    yield words, "words"


def _marked_calls(value: object, mark: Callable[[str, str], str]) -> object:
    """Return function calls with marks around all their texts. Keys of arguments stay as they are."""
    if isinstance(value, str):
        return mark(value, "call")
    if isinstance(value, list):
        return [_marked_calls(one, mark) for one in value]
    if isinstance(value, dict):
        return {key: _marked_calls(one, mark) for key, one in value.items()}
    return value


def _read(marked: str, plane: int) -> MarkedText | None:
    text: list[str] = []
    pieces: list[Piece] = []
    opened: tuple[int, int] | None = None  # number of the mark, begin of the piece
    length = at = 0
    for match in re.finditer(f"[{chr(plane)}-{chr(plane + PLANE_SIZE)}]", marked):
        text.append(marked[at : match.start()])
        length, at, number = length + match.start() - at, match.end(), ord(match[0]) - plane
        if (number == CLOSE) != (opened is not None):
            return None
        if opened is not None:
            message, kind = divmod(opened[0], len(KINDS))
            pieces.append(Piece(message, KINDS[kind], opened[1], length))
        opened = None if number == CLOSE else (number, length)
    return None if opened else MarkedText("".join([*text, marked[at:]]), pieces)
