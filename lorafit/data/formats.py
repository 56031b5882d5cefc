"""Formats of data rows: one function per format, in one table; the first match wins.

A format's function returns None for a row of another format, and raises BadRow for a faulty row of its own format.
A new format is one function, one entry in FORMATS and in WANTED, its keys in KEYS, and one line in
tests/data/formats.jsonl.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lorafit.data.conversation import TEXT, BadRow, Conversation, Message
from lorafit.data.dialogue import (
    MARKS,
    ONE_OR_ZERO,
    SPEAKERS,
    dialogue,
    learned_mark,
    refuse_media,
    system,
    thought_of,
    truth,
    up_to_last_answer,
)
from lorafit.data.fields import Fields, checked_text, from_json, keys_text
from lorafit.data.pairs import find_pair
from lorafit.data.readers.row import Broken, Renamed
from lorafit.messages import _, clauses
from lorafit.units import kind_text

TAGGED = re.compile(r"\s*[\[【（(]\s*(\w{1,12})\s*[\]】）)]\s*[:：]?\s*(.*)", re.DOTALL)
VERDICTS = ("label", "kto_tag")  # keys that say whether the answer is a good one


@dataclass(frozen=True)
class ReadRow:
    """A row as a conversation.

    `unused` are the keys that nothing uses, each with whether its value is a text of some length. `pair` holds the keys
    that were taken as question and answer, if they have other names than the documented ones.
    """

    format: str
    conversation: Conversation
    unused: tuple[tuple[str, bool], ...] = ()
    pair: tuple[str, str] | None = None


def to_conversation(value: object) -> Conversation:
    """Return the conversation of a row. Raises BadRow."""
    return recognize_format(value).conversation


def recognize_format(value: object, field_map: Mapping[str, str] | None = None, context: str = "") -> ReadRow:
    """Return the row's format and conversation, and the keys that were not used. Raises BadRow.

    Except for a plain text, the conversation contains an assistant message. `field_map` renames keys first. The text
    under the key `context` is put before the first user message.
    """
    if isinstance(value, Broken):
        raise BadRow(_("found: {found}; expected: {wanted}").format(found=value.found, wanted=value.wanted))
    if isinstance(value, list) and len(value) == 1:  # the form of rows in some lawyer-llama files
        value = value[0]
    if not isinstance(value, dict):
        raise BadRow(_("found: {kind}; expected: an object with keys").format(kind=kind_text(value)))
    renamed = _renamed(value, field_map or {})
    row, others = Fields(renamed), Fields(renamed.others)
    _refuse_by_meaning(row)
    name, conversation, pair = _read(row, value)
    if context:
        conversation = _with_context(row if context in row else others, conversation, context)
    return ReadRow(name, conversation, tuple({**dict(others.rest()), **dict(row.rest())}.items()), pair)


def _read(row: Fields, value: dict[Any, Any]) -> tuple[str, Conversation, tuple[str, str] | None]:
    """Return the row's format, its conversation, and the keys of question and answer if they are undocumented."""
    for fields in (row, _documented_spelling(row)):
        for name, read in FORMATS.items():
            if (conversation := read(fields)) is not None:
                if fields is not row:
                    row.used |= {key for key in row.row if _plain(key) in fields.used}
                    row.unused_inside |= fields.unused_inside
                return name, conversation, None
    if (pair := find_pair(row)) is not None:
        conversation = _asked_and_answered(row, pair.question, pair.answer, pair.input)
        return "question_answer", conversation, (" + ".join(filter(None, (pair.question, pair.input))), pair.answer)
    found = keys_text(str(key) if value[key] is not None else f"{key} (null)" for key in value)
    wanted = clauses(WANTED.values())
    raise BadRow(_("keys found: {found}; expected one of: {wanted}").format(found=found, wanted=wanted))


def _plain(key: object) -> str:
    return str(key).strip().casefold()


def _documented_spelling(row: Fields) -> Fields:
    """Return the row with the documented spelling of keys such as "Question"."""
    spelled = {_plain(key) if _plain(key) in KEYS else key: value for key, value in row.row.items()}
    return Fields(spelled if len(spelled) == len(row.row) else row.row)


def _refuse_by_meaning(row: Fields) -> None:
    """Raise BadRow for a row that says of itself that it must not be learned as it is."""
    if not row.is_blank("chosen") and not row.is_blank("rejected"):
        way = "--field_map chosen=completion" if "prompt" in row else "--field_map chosen=output"
        raise BadRow(_("`chosen` and `rejected`: a pair for preference tuning; to learn the chosen answers only: {way}").format(
            way=way if isinstance(row.row["chosen"], str) else _("put each at the end of its conversation")))  # fmt: skip
    for key in VERDICTS:
        verdict = truth(row.row.get(key))
        if verdict is False:
            raise BadRow(_("`{key}` is false: a bad answer, for preference tuning; delete such rows").format(key=key))
        row.used.update([key] if verdict is True else [])
    marks = {key: row.row[key] for key in MARKS if truth(row.row.get(key)) is not None}
    weight = row.row.get("weight")
    marks |= {"weight": weight} if isinstance(weight, str | int | float) and weight in (0, 1, *ONE_OR_ZERO) else {}
    if not learned_mark(Fields(marks)):
        raise BadRow(_("the row is marked as not to be learned: {found}").format(found=keys_text(map(str, marks))))
    row.used.update(marks)
    refuse_media(row)


def _renamed(row: dict[Any, Any], field_map: Mapping[str, str]) -> Renamed:
    """Return `row` with its keys renamed. A renamed key replaces an existing key of the same name."""
    if not field_map:
        return row if isinstance(row, Renamed) else Renamed(row, {})
    new = {field_map[key]: field for key, field in row.items() if key in field_map}
    kept = {key: field for key, field in row.items() if key not in field_map}
    replaced = {key: field for key, field in kept.items() if key in new}
    others = row.others if isinstance(row, Renamed) else {}
    return Renamed({**kept, **new}, {**others, **replaced})


def _with_context(row: Fields, turns: Conversation, key: str) -> Conversation:
    """Return the messages with the text under `key` and an empty line before the first user message's text."""
    at = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    found = None if at is None else row.optional(key)
    parts = found if isinstance(found, list) else [] if found is None else [found]
    text = "\n".join(checked_text(part, key, may_be_empty=True) for part in parts)
    if not text.strip() or at is None:
        return turns
    asked = Message("user", f"{text}\n\n{turns[at].content}", place=turns[at].place)
    return [*turns[:at], asked, *turns[at + 1 :]]


# Formats


def alpaca(row: Fields) -> Conversation | None:
    """Parse `instruction` and `output`; optional `input`, `system`, and `history` as [question, answer] pairs."""
    if "instruction" not in row or "output" not in row:
        return None
    return _asked_and_answered(row, "instruction", "output", "input")


def _asked_and_answered(row: Fields, question: str, answer: str, further: str = "") -> Conversation:
    """Return the conversation of one question and answer, after the row's system message and history.

    The text under `further` follows the question on a new line. Raises BadRow.
    """
    before = [*system(row), *_history(row)]
    asked = row.text(question, may_be_empty=bool(further))
    if further and row.optional(further) is not None:
        asked = "\n".join(part for part in (asked, row.text(further)) if part)
    if not asked.strip():
        raise BadRow(_("`{key}` is empty").format(key=question))
    thought = thought_of(row, row.row[answer])
    said = Message("assistant", row.text(answer), thought=thought, place=answer)
    return [*before, Message("user", asked, place=question), said]


def _history(row: Fields) -> Conversation:
    if row.optional("history") is None:
        return []
    try:
        pairs = from_json(row["history"], "history")
    except BadRow:
        pairs = None
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise BadRow(_("`history` is not a list of [question, answer] pairs"))
    turns = []
    for number, (question, answer) in enumerate(pairs, 1):
        said = {f"history[{number}].question": question, f"history[{number}].answer": answer}
        turns += [Message(role, checked_text(said[key], key), place=key)
                  for role, key in zip(("user", "assistant"), said, strict=True)]  # fmt: skip
    return turns


def sharegpt(row: Fields) -> Conversation | None:
    """Parse `conversations`: a list of {from, value} or {role, content}; optional `system` and `tools`."""
    return dialogue(row, "conversations") if "conversations" in row else None


def messages(row: Fields) -> Conversation | None:
    """Parse `messages`: a list of {role, content} or {from, value}; optional `system` and `tools`."""
    return dialogue(row, "messages") if "messages" in row else None


def prompt_completion(row: Fields) -> Conversation | None:
    """Parse `prompt` and `completion`: texts, or lists of messages; optional `system`, and for texts `history`."""
    if all(isinstance(row.row.get(key), list) for key in ("prompt", "completion")):
        return dialogue(row, "prompt", "completion")
    return _pair(row, "prompt", "completion")


def question_answer(row: Fields) -> Conversation | None:
    """Parse `question` and `answer`; optional `system`, and `history` as [question, answer] pairs."""
    return _pair(row, "question", "answer")


def query_response(row: Fields) -> Conversation | None:
    """Parse `query` and `response`; optional `system`, and `history` as [question, answer] pairs."""
    return _pair(row, "query", "response")


def tagged_history(row: Fields) -> Conversation | None:
    """Parse `history` as the whole conversation; optional `system`.

    `history` is a list of texts that begin with the speaker: "[客户] …", "[律师] …".
    """
    turns = row.row.get("history")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
        return None
    row.used.add("history")
    said: Conversation = []
    for number, turn in enumerate(turns, 1):
        match = TAGGED.fullmatch(turn)
        role = SPEAKERS.get(match[1].lower()) if match else None
        if match is None or role is None:
            found = match[1] if match else turn[:20]
            wanted = _("`history[{number}]` starts with {found!r}, expected the speaker, e.g. [客户] or [律师]")
            raise BadRow(wanted.format(number=number, found=found))
        key = f"history[{number}]"
        text = checked_text(match[2], key)
        if said and said[-1].role == role:  # merged: chat templates expect alternating roles
            said[-1] = Message(role, f"{said[-1].content}\n\n{text}", place=said[-1].place)
        else:
            said.append(Message(role, text, place=key))
    return [*system(row), *up_to_last_answer(said, "history")]


def plain_text(row: Fields) -> Conversation | None:
    """Parse `text`: all its tokens are targets; no chat template is applied."""
    if "text" not in row:
        return None
    for key in ("role", "from"):
        if _plain(row.row.get(key)) in SPEAKERS:
            what = _("`text` is one message, with `{key}` {role!r}; put the conversation into a list under `messages`")
            raise BadRow(what.format(key=key, role=row.row[key]))
    return [Message(TEXT, row.text("text"), place="text")]


def _pair(row: Fields, question: str, answer: str) -> Conversation | None:
    if question not in row or answer not in row:
        return None
    return _asked_and_answered(row, question, answer)


FORMATS: dict[str, Callable[[Fields], Conversation | None]] = {
    "alpaca": alpaca,
    "sharegpt": sharegpt,
    "messages": messages,
    "prompt_completion": prompt_completion,
    "question_answer": question_answer,
    "query_response": query_response,
    "tagged_history": tagged_history,
    "plain_text": plain_text,
}
WANTED = {
    "alpaca": "instruction, output [input, system, history]",
    "sharegpt": "conversations [system, tools]",
    "messages": "messages [system, tools]",
    "prompt_completion": "prompt, completion [system, history]",
    "question_answer": "question, answer [system, history]",
    "query_response": "query, response [system, history]",
    "tagged_history": "history [system]",
    "plain_text": "text",
}
KEYS = ("instruction", "input", "output", "system", "history", "conversations", "messages", "tools", "prompt",
        "completion", "question", "answer", "query", "response", "text")  # fmt: skip
