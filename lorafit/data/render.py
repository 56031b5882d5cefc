"""Conversations as token ids and target masks: the model's chat template, one tokenization, one mask.

Targets (tokens in the loss) are the assistant messages with their end-of-turn tokens; target_spans.py finds them. For a
plain text, all tokens are targets.

Dimensions: T tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lorafit.data.conversation import TEXT, BadRow, Conversation, Message
from lorafit.data.micro_batch import Bool, Sample
from lorafit.data.target_spans import Span, TargetSpan, TemplateRefused, Tokenizer, content_spans
from lorafit.data.thoughts import RowThoughts, spans_and_thoughts
from lorafit.data.truncate import truncation_mask
from lorafit.messages import _

__all__ = [
    "Rendered",
    "Span",
    "TemplateRefused",
    "TemplatedText",
    "Tokenizer",
    "apply_template",
    "place_system",
    "render",
]

TrainOn = Literal["all", "last"]


@dataclass(frozen=True)
class TemplatedText:
    """A conversation as text of the chat template. `dropped`: the template omits some of the conversation's text."""

    text: str
    targets: list[TargetSpan]
    questions: list[Span]  # texts that are not learned, which truncation may shorten
    systems: list[Span]  # texts of system messages
    dropped: bool = False
    thoughts: RowThoughts | None = None  # None: conversation and template know no thoughts


@dataclass(frozen=True)
class Rendered:
    """A sample, with the numbers of tokens and of targets that truncation removed.

    `dropped`: the chat template omits some of the conversation's text.
    """

    sample: Sample
    tokens_cut: int
    targets_cut: int = 0
    dropped: bool = False
    thoughts: RowThoughts | None = None


def render(
    conversation: Conversation,
    tokenizer: Tokenizer,
    max_length: int,
    date_string: str,
    system_prompt: str | None = None,
    train_on: TrainOn = "all",
) -> Rendered:
    """Return the conversation as a sample of at most `max_length` tokens. Raises BadRow."""
    spelled = apply_template(conversation, tokenizer, date_string, system_prompt, train_on)
    ids, offsets = tokenizer.encode_with_offsets(spelled.text)
    return to_sample(spelled, ids, offsets, max_length)


def apply_template(
    conversation: Conversation,
    tokenizer: Tokenizer,
    date_string: str,
    system_prompt: str | None = None,
    train_on: TrainOn = "all",
) -> TemplatedText:
    """Return the conversation as text of the chat template, with the spans of its targets. Raises BadRow."""
    if conversation[0].role == TEXT:
        text = tokenizer.plain_text(conversation[0].content)
        return TemplatedText(text, [TargetSpan(0, len(text))], [], [])
    turns = place_system(conversation, system_prompt, tokenizer.takes_system)
    try:
        text, targets, dropped, thoughts = spans_and_thoughts(turns, tokenizer, date_string)
    except TemplateRefused as refusal:
        raise BadRow(_("rejected by the chat template: {reason}").format(reason=refusal)) from None
    chosen = [span for span in targets if span.learned][-1:] if train_on == "last" else targets
    learned = [span for span in chosen if span.learned]
    questions, systems, missing = content_spans(turns, text, targets)
    questions += [(span.begin, span.end) for span in targets if span not in learned]
    if thoughts is not None and train_on == "last":
        thoughts = thoughts._replace(earlier=False)
    return TemplatedText(text, learned, questions, systems, dropped or missing, thoughts)


def to_sample(spelled: TemplatedText, ids: Sequence[int], offsets: Iterable[Span], max_length: int) -> Rendered:
    """Return the tokens of `spelled` as a sample, truncated to `max_length`. Raises BadRow if no target is left."""
    offsets_T2 = np.asarray(offsets, np.int64).reshape(-1, 2)
    ids_T, mask_T = np.asarray(ids, np.int32), target_mask(offsets_T2, spelled.targets)
    targets = int(mask_T.sum())
    if len(ids_T) > max_length:
        kept_T = truncation_mask(mask_T, offsets_T2, spelled.questions, spelled.systems, max_length)
        ids_T, mask_T = ids_T[kept_T], mask_T[kept_T]
        mask_T[:1] = False
    if not mask_T.any():
        raise BadRow(_("no answer left within max_length {n}; a larger --max_length keeps it").format(n=max_length))
    cut, targets_cut = len(offsets_T2) - len(ids_T), targets - int(mask_T.sum())
    return Rendered(Sample(ids_T, mask_T), cut, targets_cut, spelled.dropped, spelled.thoughts)


def place_system(conversation: Conversation, system_prompt: str | None, takes_system: bool) -> Conversation:
    """Return the conversation with `system_prompt` as its system message, unless it already has a system message.

    If the template takes no system message, its text is put before the text of the user message that follows it.
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
    """Return the target mask [T]: True for tokens whose characters all lie in one span.

    If the span is `unlike_prompt`, a token across its beginning is a target too. The first token is never a target,
    because no earlier token predicts it.
    """
    begins_T, ends_T = offsets_T2[:, 0].copy(), offsets_T2[:, 1]
    # The offsets of byte-level tokenizers exclude leading spaces: a token begins where the previous token ends.
    begins_T[1:] = np.minimum(begins_T[1:], ends_T[:-1])
    mask_T = np.zeros(len(offsets_T2), np.bool_)
    for span in spans:
        inside_T = (begins_T >= span.begin) & (ends_T <= span.end) & (ends_T > span.begin)
        if span.unlike_prompt:
            inside_T |= (begins_T < span.begin) & (ends_T > span.begin)
        mask_T |= inside_T
    mask_T[:1] = False
    return mask_T
