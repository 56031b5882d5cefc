"""A conversation: the form that every row takes before the chat template writes it."""

from dataclasses import dataclass, field

TEXT, TOOLS = "text", "tools"  # additional roles: a plain text; the callable functions, as JSON
END_OF_THOUGHT = "</think>"  # where a thought is part of the content


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    `role` is system, user, assistant, tool, TEXT or TOOLS. `calls` is empty or JSON: a list of {name, arguments}.
    `thought` is the reasoning that a row keeps apart from the content. `name` is the function whose result a tool's
    message is. `learned`: an assistant's message is a target. `place` is where the row has the message: "messages[3]".
    """

    role: str
    content: str
    calls: str = ""
    thought: str = ""
    name: str = ""
    learned: bool = True
    place: str = field(default="", compare=False)


Conversation = list[Message]


class BadRow(Exception):
    """A row that cannot be used for training; `reason` says what was found and what was expected."""

    def __init__(self, reason: str) -> None:
        clean = reason.encode("utf-8", "backslashreplace").decode()  # a key may contain a lone surrogate
        self.reason = reason if clean == reason else clean  # an unchanged reason keeps its recipe
        super().__init__(self.reason)
