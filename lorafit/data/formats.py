"""Formats of data rows: one function per format, in one table; the first match wins.

A format's function returns None for a row of another format, and raises BadRow for a faulty row of its own format.
A new format is one function, one entry in FORMATS and in WANTED, its keys in KEYS, and one line in
tests/data/formats.jsonl.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lorafit.data.readers.row import Broken
from lorafit.messages import _, clauses, listed
from lorafit.units import kind_text

TEXT, TOOLS = "text", "tools"  # additional roles: a plain text; the callable functions, as JSON
# Names of speakers in data sets, and the role that chat templates use.
SPEAKERS = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user", "client": "user", "customer": "user",
    "客户": "user", "用户": "user", "当事人": "user", "咨询者": "user", "问": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "lawyer": "assistant", "律师": "assistant", "助手": "assistant", "答": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool", "ipython": "tool",
    "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
CALLS = ("function_call", "tool_call")
TAGGED = re.compile(r"\s*[\[【（(]\s*(\w{1,12})\s*[\]】）)]\s*[:：]?\s*(.*)", re.DOTALL)


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    `role` is system, user, assistant, tool, TEXT or TOOLS. `calls` is empty or JSON: a list of {name, arguments}.
    """

    role: str
    content: str
    calls: str = ""


Conversation = list[Message]
Fields = Mapping[str, Any]  # keys and values of a row, without null values


class BadRow(Exception):
    """A row that cannot be used for training; `reason` says what was found and what was expected."""

    def __init__(self, reason: str) -> None:
        clean = reason.encode("utf-8", "backslashreplace").decode()  # a key may contain a lone surrogate
        self.reason = reason if clean == reason else clean  # an unchanged reason keeps its recipe
        super().__init__(self.reason)


def to_conversation(value: object) -> Conversation:
    """Return the conversation of a row. Raises BadRow."""
    return recognize_format(value)[1]


def recognize_format(
    value: object, field_map: Mapping[str, str] | None = None, context: str = ""
) -> tuple[str, Conversation]:
    """Return the name of the row's format and its conversation. Raises BadRow.

    Except for a plain text, the conversation contains an assistant message. `field_map` renames keys first. The text
    under the key `context` is put before the first user message.
    """
    if isinstance(value, Broken):
        raise BadRow(_("found: {found}; expected: {wanted}").format(found=value.found, wanted=value.wanted))
    if isinstance(value, list) and len(value) == 1:  # the form of rows in some lawyer-llama files
        value = value[0]
    if not isinstance(value, dict):
        raise BadRow(_("found: {kind}; expected: an object with keys").format(kind=kind_text(value)))
    row = {key: field for key, field in _renamed(value, field_map or {}).items() if field is not None}
    for name, read in FORMATS.items():
        if (conversation := read(row)) is not None:
            return name, _with_context(row, conversation, context) if context else conversation
    found = _keys_text(str(key) if value[key] is not None else f"{key} (null)" for key in value)
    wanted = clauses(WANTED.values())
    raise BadRow(_("keys found: {found}; expected one of: {wanted}").format(found=found, wanted=wanted))


def _keys_text(keys: Iterable[str]) -> str:
    """Return `keys` as a list of at most 300 characters; a shorter one keeps its recipe."""
    found = listed(keys) or _("no keys")
    return found if len(found) <= 300 else found[:300]


def _renamed(row: dict[Any, Any], field_map: Mapping[str, str]) -> dict[Any, Any]:
    """Return `row` with its keys renamed. A renamed key replaces an existing key of the same name."""
    new = {field_map[key]: field for key, field in row.items() if key in field_map}
    return {key: field for key, field in row.items() if key not in field_map and key not in new} | new


def _with_context(row: Fields, turns: Conversation, key: str) -> Conversation:
    """Return the messages with the text under `key` and an empty line before the first user message's text."""
    parts = row.get(key, [])
    parts = parts if isinstance(parts, list) else [parts]
    text = "\n".join(_text({key: part}, key, may_be_empty=True) for part in parts)
    at = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if not text.strip() or at is None:
        return turns
    return [*turns[:at], Message("user", f"{text}\n\n{turns[at].content}"), *turns[at + 1 :]]


# Formats


def alpaca(row: Fields) -> Conversation | None:
    """Parse `instruction` and `output`; optional `input`, `system`, and `history` as [question, answer] pairs."""
    if "instruction" not in row or "output" not in row:
        return None
    turns = [*_system(row), *_history(row.get("history") or [])]
    question = _text(row, "instruction", may_be_empty=True)
    if row.get("input"):
        question = "\n".join(part for part in (question, _text(row, "input")) if part)
    if not question.strip():
        raise BadRow(_("`{key}` is empty").format(key="instruction"))
    return [*turns, Message("user", question), Message("assistant", _text(row, "output"))]


def _history(pairs: object) -> Conversation:
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise BadRow(_("`history` is not a list of [question, answer] pairs"))
    turns = []
    for number, (question, answer) in enumerate(pairs, 1):
        said = {f"history[{number}].question": question, f"history[{number}].answer": answer}
        turns += [Message(role, _text(said, key)) for role, key in zip(("user", "assistant"), said, strict=True)]
    return turns


def sharegpt(row: Fields) -> Conversation | None:
    """Parse `conversations`: a list of {from, value} or {role, content}; optional `system` and `tools`."""
    return _dialogue(row, "conversations") if "conversations" in row else None


def messages(row: Fields) -> Conversation | None:
    """Parse `messages`: a list of {role, content} or {from, value}; optional `system` and `tools`."""
    return _dialogue(row, "messages") if "messages" in row else None


def prompt_completion(row: Fields) -> Conversation | None:
    """Parse `prompt` and `completion`: texts, or lists of messages; optional `system`, and for texts `history`."""
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return _dialogue({**row, "messages": prompt + completion}, "messages")
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
    turns = row.get("history")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
        return None
    said: Conversation = []
    for number, turn in enumerate(turns, 1):
        match = TAGGED.fullmatch(turn)
        role = SPEAKERS.get(match[1].lower()) if match else None
        if match is None or role is None:
            found = match[1] if match else turn[:20]
            wanted = _("`history[{number}]` starts with {found!r}, expected the speaker, e.g. [客户] or [律师]")
            raise BadRow(wanted.format(number=number, found=found))
        key = f"history[{number}]"
        text = _text({key: match[2]}, key)
        if said and said[-1].role == role:  # merged: chat templates expect alternating roles
            said[-1] = Message(role, f"{said[-1].content}\n\n{text}")
        else:
            said.append(Message(role, text))
    return [*_system(row), *_answered(said, "history")]


def plain_text(row: Fields) -> Conversation | None:
    """Parse `text`: all its tokens are targets; no chat template is applied."""
    return [Message(TEXT, _text(row, "text"))] if "text" in row else None


def _pair(row: Fields, question: str, answer: str) -> Conversation | None:
    if question not in row or answer not in row:
        return None
    before = [*_system(row), *_history(row.get("history") or [])]
    return [*before, Message("user", _text(row, question)), Message("assistant", _text(row, answer))]


# Messages


def _dialogue(row: Fields, key: str) -> Conversation:
    if not isinstance(row[key], list):
        raise BadRow(_("`{key}`: expected a list, found {kind}").format(key=key, kind=kind_text(row[key])))
    turns = [_message(key, number, turn) for number, turn in enumerate(row[key], 1)]
    if turns and turns[0].role != "system":
        turns = [*_system(row), *turns]
    return [*_tools(row), *_answered(turns, key)]


def _answered(turns: Conversation, key: str) -> Conversation:
    """Return the messages up to the last assistant message: later messages carry no loss.

    Raises BadRow if there is no assistant message.
    """
    answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    if not answers:
        raise BadRow(_("`{key}` contains no assistant message").format(key=key))
    return turns[: answers[-1] + 1]


def _message(key: str, number: int, turn: object) -> Message:
    if not isinstance(turn, dict):
        kind = kind_text(turn)
        raise BadRow(_("message {number}: expected role and content, found: {found}").format(number=number, found=kind))
    who, said = ("role", "content") if "role" in turn else ("from", "value")
    calls = turn.get("tool_calls") or None
    if who not in turn or (said not in turn and not calls):
        found = _keys_text(map(str, turn))
        raise BadRow(
            _("message {number}: expected role and content, found: {found}").format(number=number, found=found)
        )
    speaker = turn[who]
    role = SPEAKERS.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        known = listed(("system", "user", "assistant", "tool"))
        raise BadRow(_("message {number}: role {role}, expected one of {known}").format(
            number=number, role=f"{speaker!r:.40}", known=known))  # fmt: skip
    place = f"{key}[{number}]"
    if speaker in CALLS:
        return Message(role, "", _calls(turn[said], f"{place}.{said}"))
    if calls:
        content = _text({f"{place}.{said}": turn.get(said) or ""}, f"{place}.{said}", may_be_empty=True)
        return Message(role, content, _calls(calls, f"{place}.tool_calls"))
    return Message(role, _spoken(turn[said], f"{place}.{said}"))


def _spoken(content: object, key: str) -> str:
    """Return the text of a message's content: a string, or parts [{"type": "text", "text": …}]. Raises BadRow."""
    if isinstance(content, list) and content and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return "".join(_text({key: part.get("text")}, key) for part in content)
    return _text({key: content}, key)


def _calls(found: object, key: str) -> str:
    """Return function calls as JSON: a list of {name, arguments}. Raises BadRow."""
    calls = _from_json(found, key)
    calls = calls if isinstance(calls, list) else [calls]
    made = []
    for call in calls:
        inner = call.get("function", call) if isinstance(call, dict) else call
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise BadRow(_("`{key}` is not a function call, expected name and arguments").format(key=key))
        arguments = _from_json(inner.get("arguments", {}), f"{key}.arguments")
        made.append({"name": inner["name"], "arguments": arguments})
    return _as_json(made, key)


def _tools(row: Fields) -> Iterator[Message]:
    if tools := row.get("tools"):
        described = _from_json(tools, "tools")
        if not isinstance(described, list) or not all(isinstance(tool, dict) for tool in described):
            raise BadRow(_("`{key}`: expected a list, found {kind}").format(key="tools", kind=kind_text(described)))
        if described:
            yield Message(TOOLS, _as_json(described, "tools"))


def _from_json(value: object, key: str) -> object:
    """Parse a string as JSON; return any other value unchanged. Raises BadRow.

    Many data sets store nested values as JSON strings.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadRow(_("`{key}` is not valid JSON").format(key=key)) from None


def _as_json(value: object, key: str) -> str:
    try:
        return _text({key: json.dumps(value, ensure_ascii=False)}, key)
    except (TypeError, RecursionError):
        raise BadRow(_("`{key}` contains a value that JSON cannot represent").format(key=key)) from None


def _system(row: Fields) -> Iterator[Message]:
    if row.get("system"):
        yield Message("system", _text(row, "system"))


def _text(row: Fields, key: str, may_be_empty: bool = False) -> str:
    """Return the text under `key`. Raises BadRow if it is not a string, is empty, or contains a lone surrogate."""
    text = row[key]
    if not isinstance(text, str):
        raise BadRow(_("`{key}`: expected text, found {kind}").format(key=key, kind=kind_text(text)))
    if not text.strip() and not may_be_empty:
        raise BadRow(_("`{key}` is empty").format(key=key))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # from JSON escapes, or from bytes that are not UTF-8; tokenizers reject it
        raise BadRow(
            _("`{key}` contains an invalid character (half of a surrogate pair, or not UTF-8)").format(key=key)
        ) from None
    return text


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
    "sharegpt": "conversations",
    "messages": "messages",
    "prompt_completion": "prompt, completion",
    "question_answer": "question, answer",
    "query_response": "query, response",
    "tagged_history": "history",
    "plain_text": "text",
}
KEYS = ("instruction", "input", "output", "system", "history", "conversations", "messages", "tools", "prompt",
        "completion", "question", "answer", "query", "response", "text")  # fmt: skip
