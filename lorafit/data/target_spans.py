"""Where in the template's text do the assistant's turns lie? Found by rendering up to each, so no markers are known here.

A template may write a turn, or the prompt before it, differently when more turns follow (a thought only in the last
turn, an eos only at the end): then the turn's words must stand where the prompt ends. What cannot be placed is refused.
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

Span = tuple[int, int]  # first character and the one behind the last
NAME = re.compile(r'"name": "([^"]+)"')
THOUGHT = "</think>"  # ends what some templates move or leave out


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

    def plain_text(self, text: str) -> str:
        """`text` between the tokens that begin and end one, where the tokenizer has them."""
        ...

    def encode_with_offsets(self, text: str) -> tuple[Sequence[int], Sequence[Span]]:
        """Token ids of `text`, nothing added, and the characters that each stands for."""
        ...

    def encode_many(self, texts: Sequence[str]) -> Sequence[tuple[Sequence[int], Sequence[Span]]]:
        """The same for several, on all cores."""
        ...


@dataclass(frozen=True)
class TargetSpan:
    """Characters that carry loss. `unlike_prompt`: the prompt for this turn goes on otherwise from `begin` on, so a token
    that lies across it must be learned too."""

    begin: int
    end: int
    unlike_prompt: bool = False


def target_spans(turns: Conversation, tokenizer: Tokenizer, date_string: str) -> tuple[str, list[TargetSpan], bool]:
    """The whole text, where in it the assistant's turns lie, and whether a thought was left out. Raises BadRow."""
    text = tokenizer.render_text(turns, False, date_string)
    spans: list[TargetSpan] = []
    dropped = False
    for i, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        if all(before.role in ("system", TOOLS) for before in turns[:i]):
            raise BadRow(_("it begins with the assistant's turn, wanted a question first"))
        place = _MessageSearch(text, turns, i, tokenizer, date_string, spans[-1].end if spans else 0)
        span = _calls_span(place) if turn.calls else _words_span(place)
        if span is None:
            raise BadRow(_("the chat template leaves out or changes what turn {number} says").format(number=i + 1))
        spans.append(span)
        dropped |= THOUGHT in turn.content and _thought(turn.content) not in text[span.begin : span.end]
    return text, spans, dropped


@dataclass(frozen=True)
class _MessageSearch:
    """Turn number `i` of `turns`, to be found in `text` behind `cursor`."""

    text: str
    turns: Conversation
    i: int
    tokenizer: Tokenizer
    date_string: str
    cursor: int

    @cached_property
    def before(self) -> str:
        """The prompt that asks for the turn."""
        return self.tokenizer.render_text(self.turns[: self.i], True, self.date_string)

    @cached_property
    def through(self) -> str:
        """What would be the whole text if the turn were the last."""
        if self.i + 1 == len(self.turns):
            return self.text
        return self.tokenizer.render_text(self.turns[: self.i + 1], False, self.date_string)

    @cached_property
    def asking(self) -> str:
        """What the prompt adds behind the turns before."""
        head = self.tokenizer.render_text(self.turns[: self.i], False, self.date_string)
        return self.before[len(commonprefix([head, self.before])) :]  # noqa: RUF071 (by character, as is wanted)

    @property
    def turn(self) -> Message:
        return self.turns[self.i]

    @cached_property
    def begin(self) -> TargetSpan | None:
        """An empty span where the turn begins, or None where the prompt was written otherwise altogether."""
        if self.text.startswith(self.before):
            return TargetSpan(len(self.before), len(self.before))
        common = len(commonprefix([self.before, self.text]))  # noqa: RUF071
        in_this_turn = common > len(self.before) - len(self.asking) and common >= self.cursor
        return TargetSpan(common, common, unlike_prompt=True) if in_this_turn else None


def _words_span(place: _MessageSearch) -> TargetSpan | None:
    """From where the prompt ends to behind the words' end-of-turn token."""
    end_of_turn = place.tokenizer.end_of_turn
    answers = [words + end_of_turn for words in _wordings(place.turn.content)]
    begin = place.begin
    if begin is not None and place.text.startswith(place.through):
        for answer in answers:
            # A template may put an empty thought in front of the words; that is learned too.
            at = place.text.rfind(answer, max(begin.begin - 1, 0), len(place.through))
            if at >= 0 and (at >= begin.begin or begin.unlike_prompt):
                return TargetSpan(min(begin.begin, at), at + len(answer), begin.unlike_prompt)
        return None
    for answer in answers:
        starts = [] if begin is None else [begin.begin]
        if begin is None and (at := place.text.find(place.asking + answer, place.cursor)) >= 0:
            starts = [at + len(place.asking)]
        for start in starts:
            if place.text.startswith(answer, start):
                return TargetSpan(start, start + len(answer), begin is not None and begin.unlike_prompt)
    return None


def _calls_span(place: _MessageSearch) -> TargetSpan | None:
    """From where the prompt ends to the next end-of-turn token; the functions' names must stand there."""
    end_of_turn, begin = place.tokenizer.end_of_turn, place.begin
    if begin is None:
        at = place.text.find(place.asking, place.cursor)
        begin = TargetSpan(at + len(place.asking), 0) if at >= 0 and place.asking else None
    if begin is None or not end_of_turn:
        return None
    at = place.text.find(end_of_turn, begin.begin)
    said = place.text[begin.begin : at]
    names = [call["name"] for call in json.loads(place.turn.calls)]
    whole = all(name in said for name in names) and _wordings(place.turn.content)[-1] in said
    return TargetSpan(begin.begin, at + len(end_of_turn), begin.unlike_prompt) if at >= 0 and whole else None


def _wordings(content: str) -> list[str]:
    """The words as they are, as a template trims them, and what is left of them without a thought."""
    wordings = [content, content.strip()]
    if THOUGHT in content:
        behind = content.rpartition(THOUGHT)[2]
        wordings += [behind, behind.lstrip("\n"), behind.strip()]
    return list(dict.fromkeys(wordings))


def _thought(content: str) -> str:
    return content.rpartition(THOUGHT)[0].rpartition("<think>")[2].strip()


def content_spans(turns: Conversation, text: str) -> tuple[list[Span], bool]:
    """Where what the others say lies in `text`, and whether some of it was left out."""
    spans, missing, cursor = [], False, 0
    for turn in turns:
        if turn.role == TOOLS:
            missing = missing or any(name not in text for name in NAME.findall(turn.content))
        if turn.role in ("assistant", TOOLS):
            continue
        words = turn.content.strip()
        at = text.find(words, cursor)
        if at < 0:
            missing = missing or words not in text  # some templates move the system text
            continue
        cursor = at + len(words)
        spans.append((at, cursor))
    return spans, missing
