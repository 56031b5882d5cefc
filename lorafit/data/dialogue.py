"""Conversations that a row holds as a list of messages, in the forms of OpenAI, ShareGPT and others."""

from collections.abc import Iterator
from typing import Any

from lorafit.data.conversation import END_OF_THOUGHT, TOOLS, BadRow, Conversation, Message
from lorafit.data.fields import Fields, as_json, checked_text, from_json, is_blank, keys_text
from lorafit.messages import _, listed
from lorafit.units import kind_text

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
CALLS = ("function_call", "tool_call")  # speakers whose text is a call
FRAME_KEYS = ("id", "type", "index", "function")  # keys of an object around a call
CALL_KEYS = ("id", "type", "index", "name", "arguments")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # keys of the reasoning before an answer
MARKS = ("loss", "train", "trainable", "weight")  # keys that say whether a message is learned
ONE_OR_ZERO = {"1": 1, "1.0": 1, "0": 0, "0.0": 0}  # marks as text
MEDIA = ("image", "images", "image_url", "video", "videos", "audio", "audios", "input_audio")


def dialogue(row: Fields, *keys: str) -> Conversation:
    """Return the conversation in the lists of messages under `keys`, one after the other. Raises BadRow."""
    turns: Conversation = []
    tools = _ToolNames()
    for key in keys:
        found = row[key]
        if isinstance(found, str) and found.lstrip().startswith(("[", "{")):  # in a cell of a table
            found = row.from_json(key)
        if not isinstance(found, list):
            raise BadRow(_("`{key}`: expected a list, found {kind}").format(key=key, kind=kind_text(found)))
        for number, turn in enumerate(found, 1):
            if (message := _message(row, key, number, turn, tools)) is not None:
                turns.append(message)
    if turns and turns[0].role != "system":
        turns = [*system(row), *turns]
    return [*_tools(row), *up_to_last_answer(turns, keys[-1])]


def system(row: Fields) -> Iterator[Message]:
    """Yield the row's system message, if it has one."""
    if row.optional("system") is not None:
        yield Message("system", row.text("system"), place=row.place("system"))


def up_to_last_answer(turns: Conversation, key: str) -> Conversation:
    """Return the messages up to the last assistant message: later messages carry no loss.

    Raises BadRow if there is no assistant message, or if none of them is to be learned.
    """
    answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    if not answers:
        raise BadRow(_("`{key}` contains no assistant message").format(key=key))
    if not any(turns[place].learned for place in answers):
        raise BadRow(_("no assistant message of `{key}` is to be learned, by their own marks").format(key=key))
    return turns[: answers[-1] + 1]


class _ToolNames:
    """The functions that were called and whose results follow: by ID, or in order."""

    def __init__(self) -> None:
        self.by_id: dict[str, str] = {}
        self.waiting: list[str] = []

    def called(self, calls: list[tuple[object, str]]) -> None:
        self.waiting = [name for _id, name in calls]
        self.by_id |= {str(key): name for key, name in calls if key is not None}

    def name_for(self, turn: Fields) -> str:
        """Return the name of the function that `turn` is a result of, or an empty string."""
        following = self.waiting.pop(0) if self.waiting else ""
        called = turn.optional("tool_call_id")
        name = turn.optional("name") or self.by_id.get(str(called)) or following
        return checked_text(name, turn.place("name"), may_be_empty=True)


def _message(row: Fields, key: str, number: int, value: object, tools: _ToolNames) -> Message | None:
    """Return a message of the list under `key`, or None for a system message without text."""
    wrong = _("message {number}: expected role and content, found: {found}")
    if not isinstance(value, dict):
        raise BadRow(wrong.format(number=number, found=kind_text(value)))
    turn = Fields(value, f"{key}[{number}]")
    who, said = ("role", "content") if "role" in turn else ("from", "value")
    has_calls = not turn.is_blank("tool_calls") or not turn.is_blank("function_call")
    if who not in turn or (said not in value and not has_calls):
        raise BadRow(wrong.format(number=number, found=keys_text(map(str, value))))
    speaker = turn[who]
    role = SPEAKERS.get(speaker.strip().lower()) if isinstance(speaker, str) else None
    if role is None:
        raise BadRow(_("message {number}: role {role}, expected one of {known}").format(
            number=number, role=f"{speaker!r:.40}", known=listed(("system", "user", "assistant", "tool"))))  # fmt: skip
    if role == "system" and turn.is_blank(said):
        return None
    made = _assistant(turn, said, speaker, tools) if role == "assistant" else _other(turn, said, role, tools)
    row.unused_inside |= {f"{key}[].{name}": long for name, long in turn.rest()}
    return made


def _other(turn: Fields, said: str, role: str, tools: _ToolNames) -> Message:
    refuse_media(turn)
    if any(truth(turn.row.get(mark)) for mark in MARKS):
        raise BadRow(_("`{key}` is to be learned, but only an assistant's messages can be").format(key=turn.path))
    turn.used.update(MARKS)
    name = tools.name_for(turn) if role == "tool" else ""
    if role == "tool" and (said not in turn or turn.row[said] in ("", [])):  # a function may return nothing
        turn.used.add(said)
        return Message(role, "", name=name, place=turn.path)
    return Message(role, _spoken(turn, said), name=name, place=turn.path)


def _assistant(turn: Fields, said: str, speaker: str, tools: _ToolNames) -> Message:
    refuse_media(turn)
    learned = learned_mark(turn)
    if said in turn and speaker.strip().lower() in CALLS:
        calls = _calls(turn, said, tools)
        return Message("assistant", "", calls, learned=learned, place=turn.path)
    thought = thought_of(turn, turn.row.get(said))
    for key in ("tool_calls", "function_call"):
        if turn.optional(key) is not None:
            calls = _calls(turn, key, tools)
            content = "" if turn.is_blank(said) else _spoken(turn, said)
            turn.used.add(said)
            return Message("assistant", content, calls, thought, learned=learned, place=turn.path)
    tools.waiting = []
    text = checked_text("", turn.place(said)) if said not in turn else _spoken(turn, said)
    return Message("assistant", text, "", thought, learned=learned, place=turn.path)


def truth(value: object) -> bool | None:
    """Return whether `value` is true or false, also as text; None for any other value."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def learned_mark(turn: Fields) -> bool:
    """Return whether the marks of a message or row let it be learned. Raises BadRow for a weight between 0 and 1."""
    learned = True
    for mark in MARKS:
        value = turn.row.get(mark)
        value = ONE_OR_ZERO.get(value, value) if isinstance(value, str) else value
        meant = truth(value)
        if meant is None and isinstance(value, int | float) and (mark == "weight" or value in (0, 1)):
            if value not in (0, 1):
                what = _("`{key}` is {value:g}, expected 0 (not learned) or 1 (learned)")
                raise BadRow(what.format(key=turn.place(mark), value=value))
            meant = bool(value)
        if meant is not None:
            turn.used.add(mark)
            learned = learned and meant
    return learned


def thought_of(turn: Fields, said: object) -> str:
    """Return the reasoning that is stored beside an answer. Raises BadRow if `said` contains another one."""
    thought = ""
    for key in THOUGHTS:
        if (found := turn.optional(key)) is not None:
            text = checked_text(found, turn.place(key))
            if thought not in ("", text):
                raise BadRow(
                    _("two different texts of reasoning, one of them under `{key}`").format(key=turn.place(key))
                )
            thought = text
    if thought and isinstance(said, str) and END_OF_THOUGHT in said:
        if thought.strip() not in said:
            raise BadRow(
                _("two different texts of reasoning, one of them in the content of `{key}`").format(key=turn.path)
            )
        return ""
    return thought


def refuse_media(turn: Fields) -> None:
    """Raise BadRow if a message or row has images, videos or sounds."""
    for key in MEDIA:
        if not turn.is_blank(key):
            raise BadRow(
                _("`{key}`: images, videos and sounds cannot be learned, only text").format(key=turn.place(key))
            )


def _spoken(turn: Fields, key: str) -> str:
    """Return the text of a message's content: a string, or parts [{"type": "text", "text": …}]. Raises BadRow."""
    turn.used.add(key)
    content, place = turn.row.get(key), turn.place(key)
    if not isinstance(content, list) or not content:
        return checked_text(content, place)
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in MEDIA:
            raise BadRow(_("`{key}`: images, videos and sounds cannot be learned, only text").format(key=place))
        if kind != "text":
            return checked_text(content, place)
        texts.append(checked_text(part.get("text"), place))
    return "".join(texts)


def _calls(turn: Fields, key: str, tools: _ToolNames) -> str:
    """Return the function calls under `key` as JSON: a list of {name, arguments}. Raises BadRow."""
    place = turn.place(key)
    calls = from_json(turn[key], place)
    made, ids = [], []
    for call in calls if isinstance(calls, list) else [calls]:
        inner: Any = call.get("function", call) if isinstance(call, dict) else call
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise BadRow(_("`{key}` is not a function call, expected name and arguments").format(key=place))
        arguments = inner.get("arguments")
        if isinstance(arguments, str):
            arguments = from_json(arguments, f"{place}.arguments") if arguments.strip() else None
        further = {name: value for name, value in inner.items() if name not in CALL_KEYS}
        further |= {} if inner is call else {name: value for name, value in call.items() if name not in FRAME_KEYS}
        unused = dict(Fields(further).rest())
        if unused and arguments is None:
            what = _("`{key}` has no arguments, but other keys: {found}; expected name and arguments")
            raise BadRow(what.format(key=place, found=keys_text(unused)))
        turn.unused_inside |= {f"{key}[].{name}": long for name, long in unused.items()}
        made.append({"name": inner["name"], "arguments": {} if arguments is None else arguments})
        ids.append((call.get("id"), inner["name"]))
    tools.called(ids)
    return as_json(made, place)


def _tools(row: Fields) -> Iterator[Message]:
    """Yield the message that describes the callable functions: `tools`, or `functions` in OpenAI's older form."""
    key = "functions" if row.is_blank("tools") else "tools"
    if row.optional(key) is None:
        return
    described = row.from_json(key)
    if not isinstance(described, list):
        raise BadRow(_("`{key}`: expected a list, found {kind}").format(key=key, kind=kind_text(described)))
    if wrong := [tool for tool in described if not isinstance(tool, dict)]:
        what = _("`{key}`: expected a list of objects, found in it: {kind}")
        raise BadRow(what.format(key=key, kind=kind_text(wrong[0])))
    if key == "functions":
        described = [{"type": "function", "function": tool} for tool in described]
    if not is_blank(described):
        yield Message(TOOLS, as_json(described, key), place=key)
