"""Which tokens is a conversation, and which of them carry loss? The model's own template, one tokenisation, one mask.

Targets are the assistant's turns and the token that ends them. Where they lie is found by rendering the conversation
up to each of them, so no template's markers are known here.

Letters: T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lorafit.data.batch import Bool, Sample
from lorafit.data.formats import BadRow, Conversation, Message
from lorafit.messages import _

Span = tuple[int, int]  # first character and the one behind the last


class TemplateRefused(Exception):
    """The chat template does not take this conversation; the text says why."""


class Tokenizer(Protocol):
    """What rendering needs of a tokenizer."""

    @property
    def takes_system(self) -> bool:
        """Whether the template writes a system turn."""
        ...

    @property
    def end_of_turn(self) -> str:
        """What the template writes behind an answer, up to the first white space."""
        ...

    def render_text(self, messages: Conversation, add_generation_prompt: bool, date_string: str) -> str:
        """The conversation in the template's words. Raises TemplateRefused."""
        ...

    def encode_with_offsets(self, text: str) -> tuple[Sequence[int], Sequence[Span]]:
        """Token ids of `text`, nothing added, and the characters that each stands for."""
        ...


@dataclass(frozen=True)
class Rendered:
    """A sample, and how many tokens were cut off to fit it in max_length."""

    sample: Sample
    tokens_cut: int


def render(
    conversation: Conversation,
    tokenizer: Tokenizer,
    max_length: int,
    date_string: str,
    system_prompt: str | None = None,
) -> Rendered:
    """The conversation as a sample of at most `max_length` tokens, cut on the right. Raises BadRow."""
    turns = place_system(conversation, system_prompt, tokenizer.takes_system)
    try:
        text, spans = target_spans(turns, tokenizer, date_string)
    except TemplateRefused as refusal:
        raise BadRow(_("the chat template refuses it: {reason}").format(reason=refusal)) from None
    ids, offsets = tokenizer.encode_with_offsets(text)
    mask = target_mask(np.asarray(offsets, np.int64).reshape(-1, 2), spans)[:max_length]
    if not mask.any():
        raise BadRow(_("no answer left within max_length {n}; a larger --max_length keeps it").format(n=max_length))
    sample = Sample(np.asarray(ids[:max_length], np.int32), mask)
    return Rendered(sample, len(ids) - len(sample))


def place_system(conversation: Conversation, system_prompt: str | None, takes_system: bool) -> Conversation:
    """The conversation with `system_prompt` first, unless it has a system turn of its own.

    Where the template takes no system turn, its text goes before the first user turn's.
    """
    turns = list(conversation)
    if system_prompt and not any(turn.role == "system" for turn in turns):
        turns.insert(0, Message("system", system_prompt))
    if takes_system or [turn.role for turn in turns[:2]] != ["system", "user"]:
        return turns
    return [Message("user", f"{turns[0].content}\n\n{turns[1].content}"), *turns[2:]]


def target_spans(turns: Conversation, tokenizer: Tokenizer, date_string: str) -> tuple[str, list[Span]]:
    """The whole text, and where in it the assistant's turns lie. Raises BadRow when a turn cannot be placed."""
    text = tokenizer.render_text(turns, False, date_string)
    spans = []
    for i, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        if i == 0:
            raise BadRow(_("it begins with the assistant's turn, wanted a question first"))
        before = tokenizer.render_text(turns[:i], True, date_string)
        through = text if i + 1 == len(turns) else tokenizer.render_text(turns[: i + 1], False, date_string)
        span = _span(text, before, through, (turn.content, turn.content.strip()), tokenizer.end_of_turn)
        if span is None:
            raise BadRow(_("the chat template leaves out or changes what turn {number} says").format(number=i + 1))
        spans.append(span)
    return text, spans


def _span(text: str, before: str, through: str, said: Sequence[str], end_of_turn: str) -> Span | None:
    """Where the turn that follows `before` and ends `through` lies in `text`, up to its end-of-turn token.

    As a rule each is a prefix of the next, and what a template writes in front of the words, an empty thought, is learned
    too. Where one writes a turn or its prompt differently when more turns follow, the words must stand there at once.
    """
    begin = len(commonprefix([before, text]))  # noqa: RUF071 (by character, as is wanted here)
    regular = through.startswith(before) and text.startswith(through)
    for words in said:  # as they are, or as a template trims them
        answer = words + end_of_turn
        at = through.rfind(answer) if regular else text.find(answer, begin, begin + len(answer))
        if at >= 0 and at + len(answer) > begin:
            return begin, at + len(answer)
    return None


def target_mask(offsets_T2: NDArray[np.int64], spans: list[Span]) -> Bool:
    """True [T] for tokens whose characters all lie in one span; never for the first token, which nothing predicts."""
    begins_T, ends_T = offsets_T2[:, 0].copy(), offsets_T2[:, 1]
    # Byte-level tokenizers leave a token's leading spaces out of its offsets: it begins where the one before ended.
    begins_T[1:] = np.minimum(begins_T[1:], ends_T[:-1])
    mask_T = np.zeros(len(offsets_T2), np.bool_)
    for begin, end in spans:
        mask_T |= (begins_T >= begin) & (ends_T <= end) & (ends_T > begin)
    mask_T[:1] = False
    return mask_T
