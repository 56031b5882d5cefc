"""How does a model answer, piece by piece, and what does a conversation remember?"""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from typing import Protocol

from lorafit.data.formats import Conversation, Message
from lorafit.engines.base import Engine
from lorafit.sampling import Sampling

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a decoder writes for a character whose bytes are not all there
WINDOW = 32  # tokens decoded together; more only costs time


class ChatTokens(Protocol):
    """What a conversation needs of a tokenizer."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end an answer."""
        ...

    def prompt_ids(self, messages: Conversation, date_string: str, system_prompt: str | None = None) -> list[int]:
        """`messages` as token ids up to where the assistant begins to speak."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Token ids as text, without special tokens."""
        ...


def text_pieces(ids: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """The text of `ids` as it grows. A character split over tokens waits until it is whole, and is left out if it never is."""
    window: list[int] = []
    shown = 0  # characters of the window's text that are out
    for token in ids:
        window.append(token)
        text = decode(window)
        whole = text.rstrip(BROKEN)
        if len(whole) > shown:
            yield whole[shown:]
            shown = len(whole)
        if len(window) >= WINDOW and whole == text:
            # one token stays: some decoders drop the space before the first
            window = [token]
            shown = len(decode(window))


class Chat:
    """A conversation with a model: it remembers what was said, and answers with the adapter on or off."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: ChatTokens,
        sampling: Sampling,
        *,
        date_string: str,
        system_prompt: str | None = None,
        has_adapter: bool = False,
    ) -> None:
        self.has_adapter = has_adapter
        self._engine = engine
        self._tokenizer = tokenizer
        self._sampling = replace(sampling, stop_ids=tokenizer.stop_ids)
        self._date_string = date_string
        self._system_prompt = system_prompt
        self._adapter_on = has_adapter
        self._said: Conversation = []

    @property
    def adapter_on(self) -> bool:
        """Whether answers come from the tuned model (True) or from the base alone."""
        return self._adapter_on

    @adapter_on.setter
    def adapter_on(self, on: bool) -> None:
        self._engine.set_adapter(on)
        self._adapter_on = on

    def reply(self, text: str) -> Generator[str, None, None]:
        """Answer `text`, piece by piece. What was shown is remembered, also of an answer that was broken off."""
        asked = [*self._said, Message("user", text)]
        answer = ""
        try:
            for piece in self._pieces(asked):
                answer += piece
                yield piece
        finally:
            if answer:
                self._said = [*asked, Message("assistant", answer)]

    def answer(self, question: str) -> str:
        """The answer to `question` alone; nothing is remembered."""
        return "".join(self._pieces([Message("user", question)]))

    def reset(self) -> None:
        """Forget what was said."""
        self._said = []

    def transcript(self) -> Conversation:
        """What was said so far, with the system prompt in front where there is one: a row that training reads."""
        return ([Message("system", self._system_prompt)] if self._system_prompt else []) + self._said

    def _pieces(self, conversation: Conversation) -> Iterator[str]:
        prompt = self._tokenizer.prompt_ids(conversation, self._date_string, self._system_prompt)
        return text_pieces(self._engine.generate(prompt, self._sampling), self._tokenizer.decode)
