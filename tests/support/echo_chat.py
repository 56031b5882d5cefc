"""A chat with a fake engine: `echo_chat.py [--no_adapter]` runs the terminal chat on its stdin and stdout.

The exit code is 130 if Ctrl-C ends the chat. No tensor library is imported.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).parents[2]))  # this file is run as a script
from lorafit.data.formats import Conversation
from lorafit.engines.base import Engine
from lorafit.evaluation.chat import Chat
from lorafit.messages import set_language
from lorafit.reporters.terminal.chat import talk
from lorafit.sampling import Sampling


class ByteTokenizer:
    """A tokenizer whose tokens are bytes. The prompt is the number of messages and the last message: "1:hello"."""

    stop_ids: frozenset[int] = frozenset()

    def prompt_ids(self, messages: Conversation, date_string: str, system_prompt: str | None = None) -> list[int]:
        return list(f"{len(messages)}:{messages[-1].content}".encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


class EchoEngine:
    """An engine that answers with the prompt, in capitals with the adapter on. At a "!" it is interrupted by Ctrl-C."""

    on = True

    def set_adapter(self, on: bool) -> None:
        self.on = on

    def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[int]:
        text = bytes(prompt_ids)
        for byte in text.upper() if self.on else text:
            if byte == ord("!"):
                raise KeyboardInterrupt
            yield byte


if __name__ == "__main__":
    set_language()
    has_adapter = "--no_adapter" not in sys.argv
    engine = cast(Engine, EchoEngine())
    chat = Chat(engine, ByteTokenizer(), Sampling(), date_string="26 Jul 2024", has_adapter=has_adapter)
    try:
        talk(chat)
    except KeyboardInterrupt:
        sys.exit(130)
