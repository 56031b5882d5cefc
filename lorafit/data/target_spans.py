"""Spans of the assistant messages in the text of a chat template.

Each span is found by rendering the conversation up to its message, so no markers of any template are needed. A template
may write a message, or the prompt before it, differently if more messages follow: a thought only in the last message,
an EOS token only at the end. In this case the message's text must follow the prompt. BadRow is raised for a message
that cannot be located.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os.path import commonprefix
from typing import Protocol

from lorafit.data.formats import TOOLS, BadRow, Conversation, Message
from lorafit.messages import _

Span = tuple[int, int]  # first character, and one past the last
NAME = re.compile(r'"name": "([^"]+)"')
THOUGHT = "</think>"  # end of a thought, which some templates move or leave out


class TemplateRefused(Exception):
    """The chat template rejects the conversation. The error's text gives the reason."""


class Tokenizer(Protocol):
    """The part of a tokenizer that rendering needs."""

    @property
    def takes_system(self) -> bool:
        """Whether the template writes a system message."""
        ...

    @property
    def end_of_turn(self) -> str:
        """The text that the template writes after an answer, up to the first white space."""
        ...

    def render_text(self, messages: Conversation, add_generation_prompt: bool, date_string: str) -> str:
        """Return the conversation as text of the chat template. Raises TemplateRefused."""
        ...

    def plain_text(self, text: str) -> str:
        """Return `text` between the tokenizer's BOS and EOS tokens, if it has them."""
        ...

    def encode_with_offsets(self, text: str) -> tuple[Sequence[int], Sequence[Span]]:
        """Return the token ids of `text`, without added tokens, and the span of characters of each token."""
        ...

    def encode_many(self, texts: Sequence[str]) -> Sequence[tuple[Sequence[int], Sequence[Span]]]:
        """Return the token ids and spans of each of `texts`, computed on all cores."""
        ...


@dataclass(frozen=True)
class TargetSpan:
    """Characters whose tokens are targets.

    `unlike_prompt`: the prompt for this message differs from the text from `begin` on, so a token that lies across
    `begin` is a target too.
    """

    begin: int
    end: int
    unlike_prompt: bool = False


def target_spans(turns: Conversation, tokenizer: Tokenizer, date_string: str) -> tuple[str, list[TargetSpan], bool]:
    """Return the whole text, the spans of its assistant messages, and whether the template omits a thought.

    Raises BadRow or TemplateRefused.
    """
    text = tokenizer.render_text(turns, False, date_string)
    spans: list[TargetSpan] = []
    dropped = False
    for i, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        if all(before.role in ("system", TOOLS) for before in turns[:i]):
            raise BadRow(_("the conversation starts with an assistant message, expected a question first"))
        place = _MessageSearch(text, turns, i, tokenizer, date_string, spans[-1].end if spans else 0)
        span = _calls_span(place) if turn.calls else _words_span(place)
        if span is None:
            raise BadRow(_("the chat template leaves out or changes the text of message {number}").format(number=i + 1))
        spans.append(span)
        dropped |= THOUGHT in turn.content and _thought(turn.content) not in text[span.begin : span.end]
    return text, spans, dropped


@dataclass(frozen=True)
class _MessageSearch:
    """The search for message `i` of `turns` in `text`, from the character `cursor` on."""

    text: str
    turns: Conversation
    i: int
    tokenizer: Tokenizer
    date_string: str
    cursor: int

    @cached_property
    def prompt_text(self) -> str:
        """The prompt that asks for the message."""
        return self.tokenizer.render_text(self.turns[: self.i], True, self.date_string)

    @cached_property
    def text_through_message(self) -> str:
        """The whole text of a conversation that ends with this message."""
        if self.i + 1 == len(self.turns):
            return self.text
        return self.tokenizer.render_text(self.turns[: self.i + 1], False, self.date_string)

    @cached_property
    def generation_prompt(self) -> str:
        """The text that the prompt adds after the earlier messages."""
        head = self.tokenizer.render_text(self.turns[: self.i], False, self.date_string)
        return self.prompt_text[len(commonprefix([head, self.prompt_text])) :]  # noqa: RUF071 (by character, as is wanted)

    @property
    def turn(self) -> Message:
        return self.turns[self.i]

    @cached_property
    def begin(self) -> TargetSpan | None:
        """An empty span where the message begins, or None if text and prompt differ before it."""
        if self.text.startswith(self.prompt_text):
            return TargetSpan(len(self.prompt_text), len(self.prompt_text))
        common = len(commonprefix([self.prompt_text, self.text]))  # noqa: RUF071
        in_this_turn = common > len(self.prompt_text) - len(self.generation_prompt) and common >= self.cursor
        return TargetSpan(common, common, unlike_prompt=True) if in_this_turn else None


def _words_span(place: _MessageSearch) -> TargetSpan | None:
    """Return the span from the end of the prompt to the end-of-turn token after the message's text, or None."""
    end_of_turn = place.tokenizer.end_of_turn
    answers = [words + end_of_turn for words in _wordings(place.turn.content)]
    begin = place.begin
    if begin is not None and place.text.startswith(place.text_through_message):
        for answer in answers:
            # A template may put an empty thought before the message's text; the thought is part of the target.
            at = place.text.rfind(answer, max(begin.begin - 1, 0), len(place.text_through_message))
            if at >= 0 and (at >= begin.begin or begin.unlike_prompt):
                return TargetSpan(min(begin.begin, at), at + len(answer), begin.unlike_prompt)
        return None
    for answer in answers:
        starts = [] if begin is None else [begin.begin]
        if begin is None and (at := place.text.find(place.generation_prompt + answer, place.cursor)) >= 0:
            starts = [at + len(place.generation_prompt)]
        for start in starts:
            if place.text.startswith(answer, start):
                return TargetSpan(start, start + len(answer), begin is not None and begin.unlike_prompt)
    return None


def _calls_span(place: _MessageSearch) -> TargetSpan | None:
    """Return the span from the end of the prompt to the next end-of-turn token, or None.

    The span must contain the names of the called functions and the message's text.
    """
    end_of_turn, begin = place.tokenizer.end_of_turn, place.begin
    if begin is None:
        at = place.text.find(place.generation_prompt, place.cursor)
        begin = TargetSpan(at + len(place.generation_prompt), 0) if at >= 0 and place.generation_prompt else None
    if begin is None or not end_of_turn:
        return None
    at = place.text.find(end_of_turn, begin.begin)
    said = place.text[begin.begin : at]
    names = [call["name"] for call in json.loads(place.turn.calls)]
    whole = all(name in said for name in names) and _wordings(place.turn.content)[-1] in said
    return TargetSpan(begin.begin, at + len(end_of_turn), begin.unlike_prompt) if at >= 0 and whole else None


def _wordings(content: str) -> list[str]:
    """Return the forms of a message's text that a template may write: unchanged, stripped, or without the thought."""
    wordings = [content, content.strip()]
    if THOUGHT in content:
        behind = content.rpartition(THOUGHT)[2]
        wordings += [behind, behind.lstrip("\n"), behind.strip()]
    return list(dict.fromkeys(wordings))


def _thought(content: str) -> str:
    return content.rpartition(THOUGHT)[0].rpartition("<think>")[2].strip()


def content_spans(turns: Conversation, text: str) -> tuple[list[Span], bool]:
    """Return the spans of the non-assistant messages in `text`, and whether some of their text is missing."""
    spans, missing, cursor = [], False, 0
    for turn in turns:
        if turn.role == TOOLS:
            missing = missing or any(name not in text for name in NAME.findall(turn.content))
        if turn.role in ("assistant", TOOLS):
            continue
        words = turn.content.strip()
        at = text.find(words, cursor)
        if at < 0:
            missing = missing or words not in text  # some templates move the system message
            continue
        cursor = at + len(words)
        spans.append((at, cursor))
    return spans, missing
