"""Which tokens is a conversation, and which of them carry loss? The model's own template, one tokenisation, one mask.

Targets are the assistant's turns and the token that ends them (turns.py finds them); of a plain text, all tokens.

Letters: T tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lorafit.data.formats import TEXT, BadRow, Conversation, Message
from lorafit.data.micro_batch import Bool, Sample
from lorafit.data.target_spans import Span, TargetSpan, TemplateRefused, Tokenizer, content_spans, target_spans
from lorafit.data.truncate import keep
from lorafit.messages import _

__all__ = ["Rendered", "Span", "TemplateRefused", "TemplatedText", "Tokenizer", "place_system", "render", "spell"]

TrainOn = Literal["all", "last"]


@dataclass(frozen=True)
class TemplatedText:
    """A conversation in the template's words, before it is tokens; `dropped`: some of what it says is left out."""

    text: str
    targets: list[TargetSpan]
    contents: list[Span]  # what is said by others, which truncation may shorten
    dropped: bool = False


@dataclass(frozen=True)
class Rendered:
    """A sample; how many tokens, and how many targets among them, were cut to fit max_length; whether text was dropped."""

    sample: Sample
    tokens_cut: int
    targets_cut: int = 0
    dropped: bool = False


def render(
    conversation: Conversation,
    tokenizer: Tokenizer,
    max_length: int,
    date_string: str,
    system_prompt: str | None = None,
    train_on: TrainOn = "all",
) -> Rendered:
    """The conversation as a sample of at most `max_length` tokens. Raises BadRow."""
    spelled = spell(conversation, tokenizer, date_string, system_prompt, train_on)
    ids, offsets = tokenizer.encode_with_offsets(spelled.text)
    return to_sample(spelled, ids, offsets, max_length)


def spell(
    conversation: Conversation,
    tokenizer: Tokenizer,
    date_string: str,
    system_prompt: str | None = None,
    train_on: TrainOn = "all",
) -> TemplatedText:
    """The conversation as text, and where its targets lie. Raises BadRow."""
    if conversation[0].role == TEXT:
        text = tokenizer.plain_text(conversation[0].content)
        return TemplatedText(text, [TargetSpan(0, len(text))], [])
    turns = place_system(conversation, system_prompt, tokenizer.takes_system)
    try:
        text, targets, dropped = target_spans(turns, tokenizer, date_string)
    except TemplateRefused as refusal:
        raise BadRow(_("the chat template refuses it: {reason}").format(reason=refusal)) from None
    contents, missing = content_spans(turns, text)
    return TemplatedText(text, targets[-1:] if train_on == "last" else targets, contents, dropped or missing)


def to_sample(spelled: TemplatedText, ids: Sequence[int], offsets: Iterable[Span], max_length: int) -> Rendered:
    """The tokens of `spelled`, cut to `max_length`. Raises BadRow when no target is left."""
    offsets_T2 = np.asarray(offsets, np.int64).reshape(-1, 2)
    ids_T, mask_T = np.asarray(ids, np.int32), target_mask(offsets_T2, spelled.targets)
    targets = int(mask_T.sum())
    if len(ids_T) > max_length:
        kept_T = keep(mask_T, offsets_T2, spelled.contents, max_length)
        ids_T, mask_T = ids_T[kept_T], mask_T[kept_T]
        mask_T[:1] = False
    if not mask_T.any():
        raise BadRow(_("no answer left within max_length {n}; a larger --max_length keeps it").format(n=max_length))
    return Rendered(Sample(ids_T, mask_T), len(offsets_T2) - len(ids_T), targets - int(mask_T.sum()), spelled.dropped)


def place_system(conversation: Conversation, system_prompt: str | None, takes_system: bool) -> Conversation:
    """The conversation with `system_prompt` first, unless it has a system turn of its own.

    Where the template takes no system turn, its text goes before the first user turn's.
    """
    turns = list(conversation)
    first = 0 if not turns or turns[0].role in ("system", "user", "assistant", "tool") else 1
    if system_prompt and not any(turn.role == "system" for turn in turns):
        turns.insert(first, Message("system", system_prompt))
    if takes_system or [turn.role for turn in turns[first : first + 2]] != ["system", "user"]:
        return turns
    system, user = turns[first : first + 2]
    return [*turns[:first], Message("user", f"{system.content}\n\n{user.content}"), *turns[first + 2 :]]


def target_mask(offsets_T2: NDArray[np.int64], spans: Iterable[TargetSpan]) -> Bool:
    """True [T] for tokens whose characters all lie in one span; never for the first token, which nothing predicts."""
    begins_T, ends_T = offsets_T2[:, 0].copy(), offsets_T2[:, 1]
    # Byte-level tokenizers leave a token's leading spaces out of its offsets: it begins where the one before ended.
    begins_T[1:] = np.minimum(begins_T[1:], ends_T[:-1])
    mask_T = np.zeros(len(offsets_T2), np.bool_)
    for span in spans:
        inside_T = (begins_T >= span.begin) & (ends_T <= span.end) & (ends_T > span.begin)
        if span.unlike_prompt:
            inside_T |= (begins_T < span.begin) & (ends_T > span.begin)
        mask_T |= inside_T
    mask_T[:1] = False
    return mask_T
