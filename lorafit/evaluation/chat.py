"""Chat with a model: streamed answers and the history of the conversation."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from lorafit.data.conversation import Conversation, Message
from lorafit.engines.base import Engine
from lorafit.errors import ModelError
from lorafit.messages import _
from lorafit.models.positions import Positions, hard_limit, soft_limit
from lorafit.progress import ProgressCallback, ignore_progress
from lorafit.sampling import Sampling

BROKEN = "\N{REPLACEMENT CHARACTER}"  # decoded in place of a character whose bytes are incomplete
SHOWN = 60  # characters of a question that an error shows
WINDOW = 32  # tokens that are decoded together; a longer window only costs time


class ChatTokens(Protocol):
    """The tokenizer interface that a chat needs."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Return the token IDs that end an answer."""
        ...

    def prompt_ids(self, messages: Conversation, date_string: str, system_prompt: str | None = None) -> list[int]:
        """Return `messages` as token IDs, with the template's generation prompt at the end."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Return the text of `ids` without special tokens."""
        ...


def text_pieces(ids: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """Yield the text of `ids` in pieces, as tokens arrive.

    A character that is split over tokens is yielded when it is complete, and dropped if it never is.
    """
    window: list[int] = []
    shown = 0  # characters of the window's text that were yielded
    for token in ids:
        window.append(token)
        text = decode(window)
        whole = text.rstrip(BROKEN)
        if len(whole) > shown:
            yield whole[shown:]
            shown = len(whole)
        if len(window) >= WINDOW and whole == text:
            # The last token stays, because some decoders drop the space before the first token.
            window = [token]
            shown = len(decode(window))


class Chat:
    """A conversation with a model. It keeps the history and answers with the adapter on or off."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: ChatTokens,
        sampling: Sampling,
        *,
        date_string: str,
        system_prompt: str | None = None,
        has_adapter: bool = False,
        positions: Positions | None = None,
    ) -> None:
        self.has_adapter = has_adapter
        self.on_note: ProgressCallback = ignore_progress  # gets texts for the user on the model's positions
        self._engine = engine
        self._tokenizer = tokenizer
        self._sampling = replace(sampling, stop_ids=tokenizer.stop_ids, max_tokens=hard_limit(positions))
        self._trained_tokens = soft_limit(positions)  # None: not known, or the user was told
        self._date_string = date_string
        self._system_prompt = system_prompt
        self._adapter_on = has_adapter
        self._history: Conversation = []

    @property
    def adapter_on(self) -> bool:
        """Whether the fine-tuned model (True) or the base model (False) answers."""
        return self._adapter_on

    @adapter_on.setter
    def adapter_on(self, on: bool) -> None:
        self._engine.set_adapter(on)
        self._adapter_on = on

    def reply(self, text: str) -> Generator[str, None, None]:
        """Yield the answer to `text` in pieces. The history keeps the yielded part, also of an interrupted answer."""
        asked = [*self._history, Message("user", text)]
        answer = ""
        try:
            for piece in self._pieces(asked):
                answer += piece
                yield piece
        finally:
            if answer:
                self._history = [*asked, Message("assistant", answer)]

    def answer(self, question: str) -> str:
        """Return the answer to `question` without the history, and leave the history unchanged."""
        return "".join(self._pieces([Message("user", question)]))

    def check_questions(self, questions: Sequence[str]) -> None:
        """Raise ModelError for the first question that is too long for the model."""
        for question in questions:
            self._prompt([Message("user", question)])

    def reset(self) -> None:
        """Clear the history."""
        self._history = []

    def transcript(self) -> Conversation:
        """Return the history, after the system prompt if there is one. The result is a valid training conversation."""
        return ([Message("system", self._system_prompt)] if self._system_prompt else []) + self._history

    def _pieces(self, conversation: Conversation) -> Iterator[str]:
        prompt = self._prompt(conversation)
        answer = self._engine.generate(prompt, self._sampling)
        return text_pieces(self._watched(answer, len(prompt)), self._tokenizer.decode)

    def _prompt(self, conversation: Conversation) -> list[int]:
        prompt = self._tokenizer.prompt_ids(conversation, self._date_string, self._system_prompt)
        check_room(prompt, conversation[-1].content, self._sampling.max_tokens)
        return prompt

    def _watched(self, ids: Iterable[int], prompt_tokens: int) -> Iterator[int]:
        """Yield `ids`; tell the user about an answer that the model's positions end, or that exceeds them."""
        made, most = 0, self._sampling.new_tokens(prompt_tokens)
        for token in ids:
            yield token
            made += 1
        if made == most < self._sampling.max_new_tokens:
            self.on_note(ended_note(prompt_tokens + most))
        if self._trained_tokens is not None and prompt_tokens + made > self._trained_tokens:
            self.on_note(beyond_note(self._trained_tokens))
            self._trained_tokens = None


def check_room(prompt: Sequence[int], question: str, max_tokens: int | None) -> None:
    """Raise ModelError if the prompt of `question` leaves no position for an answer.

    `max_tokens` is the limit of prompt and answer together.
    """
    if max_tokens is None or len(prompt) < max_tokens:
        return
    raise ModelError(
        _("The question is longer than the model can read."),
        where=question[:SHOWN],
        found=_("tokens with the chat template: {tokens}; positions of the model: {limit}").format(
            tokens=len(prompt), limit=max_tokens
        ),
        fix=_("Ask a shorter question. In a chat, /reset clears the earlier messages."),
    )


def ended_note(limit: int) -> str:
    """Return the text on an answer that ends at the model's last position."""
    text = _("The answer ends here: prompt and answer have {limit} tokens, and the model has no more positions.")
    return text.format(limit=limit)


def beyond_note(limit: int) -> str:
    """Return the text on an answer beyond the positions that the model was trained for."""
    text = _("Prompt and answer exceed {limit} tokens, for which the model was trained: answers are usually bad there.")
    return text.format(limit=limit)
