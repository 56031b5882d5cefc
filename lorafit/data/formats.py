"""What conversation does a row hold? One function a format, one table, first match wins.

A format's function answers None to a row that is not of its kind, and raises BadRow for one that is, but broken.
A new format is one function, one entry in FORMATS, one line in tests/data/formats.jsonl.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lorafit.data.rows import Broken
from lorafit.messages import _

ROLES = ("system", "user", "assistant")
PAIRS = (("question", "answer"), ("query", "response"), ("prompt", "completion"))


@dataclass(frozen=True)
class Message:
    """One turn: `role` is system, user or assistant."""

    role: str
    content: str


Conversation = list[Message]
Fields = Mapping[str, Any]  # a row's keys and values, without those that are null


class BadRow(Exception):
    """A row cannot be learned from; `reason` says what was found and what is wanted."""

    def __init__(self, reason: str) -> None:
        self.reason = reason.encode("utf-8", "backslashreplace").decode()  # a key may hold half a character
        super().__init__(self.reason)


def to_conversation(value: object) -> Conversation:
    """The conversation in a row. Raises BadRow."""
    return recognise(value)[1]


def recognise(value: object) -> tuple[str, Conversation]:
    """The name of the row's format and its conversation, which holds an answer. Raises BadRow."""
    if isinstance(value, Broken):
        raise BadRow(_("found {found}, wanted {wanted}").format(found=value.found, wanted=value.wanted))
    if not isinstance(value, dict):
        raise BadRow(_("found {kind}, wanted an object with keys").format(kind=type(value).__name__))
    row = {key: field for key, field in value.items() if field is not None}
    for name, read in FORMATS.items():
        if (conversation := read(row)) is not None:
            return name, conversation
    found = ", ".join(str(key) if key in row else f"{key} (null)" for key in value) or _("no keys")
    wanted = "; ".join(WANTED.values())
    raise BadRow(_("found the keys: {found}; wanted one of: {wanted}").format(found=found[:300], wanted=wanted))


def alpaca(row: Fields) -> Conversation | None:
    """`instruction` and `output`; optional `input`, `system`, and `history` as [question, answer] pairs."""
    if "instruction" not in row or "output" not in row:
        return None
    turns = [Message("system", _text(row, "system"))] if row.get("system") else []
    turns += _history(row.get("history") or [])
    question = _text(row, "instruction", may_be_empty=True)
    if row.get("input"):
        question = "\n".join(part for part in (question, _text(row, "input")) if part)
    if not question.strip():
        raise BadRow(_("`{key}` is empty").format(key="instruction"))
    return [*turns, Message("user", question), Message("assistant", _text(row, "output"))]


def _history(pairs: object) -> Conversation:
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise BadRow(_("`history` is no list of [question, answer] pairs"))
    turns = []
    for number, (question, answer) in enumerate(pairs, 1):
        said = {f"history[{number}].question": question, f"history[{number}].answer": answer}
        turns += [Message(role, _text(said, key)) for role, key in zip(("user", "assistant"), said, strict=True)]
    return turns


def messages(row: Fields) -> Conversation | None:
    """`messages`: a list of {role, content}. Turns behind the last answer carry no loss and are dropped."""
    if "messages" not in row:
        return None
    if not isinstance(row["messages"], list):
        raise BadRow(_("`messages` is {kind}, wanted a list").format(kind=type(row["messages"]).__name__))
    turns = [_message(number, turn) for number, turn in enumerate(row["messages"], 1)]
    while turns and turns[-1].role != "assistant":
        turns.pop()
    if not turns:
        raise BadRow(_("`messages` holds no turn of the assistant"))
    return turns


def _message(number: int, turn: object) -> Message:
    if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
        found = ", ".join(map(str, turn)) if isinstance(turn, dict) else type(turn).__name__
        raise BadRow(_("turn {number} has {found}, wanted role and content").format(number=number, found=found[:300]))
    if turn["role"] not in ROLES:
        known = ", ".join(ROLES)
        raise BadRow(_("turn {number} has the role {role!r:.40}, wanted one of {known}").format(
            number=number, role=turn["role"], known=known))  # fmt: skip
    return Message(turn["role"], _text({f"messages[{number}].content": turn["content"]}, f"messages[{number}].content"))


def question_answer(row: Fields) -> Conversation | None:
    """A question and its answer under one of the usual pairs of keys; optional `system`."""
    for question, answer in PAIRS:
        if question in row and answer in row:
            turns = [Message("system", _text(row, "system"))] if row.get("system") else []
            return [*turns, Message("user", _text(row, question)), Message("assistant", _text(row, answer))]
    return None


def _text(row: Fields, key: str, may_be_empty: bool = False) -> str:
    """The text under `key`. Raises BadRow when it is no string, empty, or holds half a character."""
    text = row[key]
    if not isinstance(text, str):
        raise BadRow(_("`{key}` is {kind}, wanted text").format(key=key, kind=type(text).__name__))
    if not text.strip() and not may_be_empty:
        raise BadRow(_("`{key}` is empty").format(key=key))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can write a lone surrogate, tokenizers fail at it
        raise BadRow(_("`{key}` holds a broken character (half a surrogate pair)").format(key=key)) from None
    return text


FORMATS: dict[str, Callable[[Fields], Conversation | None]] = {
    "alpaca": alpaca,
    "messages": messages,
    "question_answer": question_answer,
}
WANTED = {
    "alpaca": "instruction, output [input, system, history]",
    "messages": "messages",
    "question_answer": " | ".join(f"{question}, {answer}" for question, answer in PAIRS),
}
