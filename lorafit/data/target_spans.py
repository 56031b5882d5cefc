"""Spans of the assistant messages in the text of a chat template.

Each span is found by rendering the conversation up to its message, so no markers of any template are needed: the span
begins where the prompt for the message ends. A template may write a message, or the prompt before it, differently if
more messages follow: a thought only in the last message, an EOS token only at the end. In this case, or if the message
is not found in this way, the marks of marked_text.py give the positions. BadRow is raised for a message that cannot be
located, and for a span that contains text of another role.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os.path import commonprefix
from typing import Protocol

from lorafit.data.conversation import END_OF_THOUGHT, TOOLS, BadRow, Conversation, Message
from lorafit.data.marked_text import MarkedText, Piece, render_marked
from lorafit.messages import _
from lorafit.units import count_text

Span = tuple[int, int]  # first character, and one past the last
MANY = 32  # messages from which equal surroundings of messages are searched once
MOST = 20_000  # messages of a conversation
TAG = re.compile("</?think>")
WORD = re.compile(r"\w+")
NAME = re.compile(r'"name": "([^"]+)"')
END = re.compile(r"\s*\S+|")  # white space and a word: the end of a turn, as the template writes it behind a text


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
        """The text that the template writes after an answer, up to the second white space."""
        ...

    @property
    def knows_thoughts(self) -> bool:
        """Whether the template mentions thoughts of a reasoning model."""
        ...

    @property
    def generation_prompt(self) -> str:
        """The text that the template writes behind a single question to prompt the answer."""
        ...

    @property
    def thought_switch(self) -> str | None:
        """The variable by which the template prompts with or without thoughts, or None."""
        ...

    def special_token_at(self, text: str, at: int) -> str:
        """Return the special token that begins at character `at` of `text`, or an empty string."""
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
    """Characters of an assistant message, whose tokens are targets.

    `unlike_prompt`: the prompt for this message differs from the text from `begin` on, so a token that lies across
    `begin` is a target too. `learned` is False for a message that the row marks as not to be learned.
    """

    begin: int
    end: int
    unlike_prompt: bool = False
    learned: bool = True


def target_spans(turns: Conversation, tokenizer: Tokenizer, date_string: str) -> tuple[str, list[TargetSpan], bool]:
    """Return the whole text, the spans of all assistant messages, and whether the template omits part of them.

    Raises BadRow or TemplateRefused.
    """
    if len(turns) > MOST:
        text = _("the conversation has {n} messages, at most {most}; split it into several rows")
        raise BadRow(text.format(n=count_text(len(turns)), most=count_text(MOST)))
    whole = _Whole(turns, tokenizer, date_string)
    alike = _AlikeMessages(whole)
    spans: list[TargetSpan] = []
    cursor, dropped = 0, False
    for i, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        if all(before.role in ("system", TOOLS) for before in turns[:i]):
            raise BadRow(_("the conversation starts with an assistant message, expected a question first"))
        search = _MessageSearch(whole, i, cursor)
        span = alike.span_of(search) or search.from_prompt() or search.from_marks()
        if span is None or span.begin < cursor:
            raise BadRow(search.reason())
        alike.add(i, span)
        span, cursor = search.with_next_token(span), span.end
        dropped |= not _says_all(turn, whole.text[span.begin : span.end])
        spans.append(replace(span, learned=turn.learned))
    return whole.text, spans, dropped


def _says_all(turn: Message, said: str) -> bool:
    """Return whether `said` contains the thoughts of the message, and the words before its thoughts and calls."""
    if not turn.calls and END_OF_THOUGHT not in turn.content:
        return turn.thought.strip() in said
    return all(text.strip() in said for text in (turn.thought, *TAG.split(turn.content)))


def _texts_in(value: object) -> Iterator[str]:
    """Yield the words of all texts in a function call, keys of arguments included."""
    if isinstance(value, str):
        yield from WORD.findall(value)
    elif isinstance(value, dict):
        yield from (word for both in value.items() for one in both for word in _texts_in(one))
    elif isinstance(value, list):
        yield from (word for one in value for word in _texts_in(one))


class _Whole:
    """A conversation and its text."""

    def __init__(self, turns: Conversation, tokenizer: Tokenizer, date_string: str) -> None:
        self.turns, self.tokenizer, self.date_string = turns, tokenizer, date_string
        self.text = self.render(turns)

    def render(self, turns: Conversation, prompt: bool = False) -> str:
        return self.tokenizer.render_text(turns, prompt, self.date_string)

    def marked(self, count: int, prompt: bool = False) -> MarkedText | None:
        """Return the first `count` messages as marked text, or None if the template reads the marks as text."""
        try:
            return render_marked(self.turns[:count], lambda turns: self.render(turns, prompt))
        except TemplateRefused:
            return None

    @cached_property
    def pieces(self) -> list[Piece]:
        """The pieces of the whole text; none if the marks change the text."""
        marked = self.marked(len(self.turns))
        return marked.pieces if marked and marked.text == self.text else []


@dataclass(frozen=True)
class _MessageSearch:
    """The search for message `i` of `whole`, from the character `cursor` on."""

    whole: _Whole
    i: int
    cursor: int

    @property
    def turn(self) -> Message:
        return self.whole.turns[self.i]

    def reason(self) -> str:
        """Return the reason why the message cannot be learned."""
        place = f"`{self.turn.place}`" if self.turn.place else _("message {number}").format(number=self.i + 1)
        if self.own and self.foreign_in(self.own[0].begin, self.own[-1].end):
            return _("the chat template writes the text of another message inside {place}").format(place=place)
        if self.turn.calls and not any(piece.kind == "call" for piece in self.own):
            text = _(
                "the chat template does not write function calls, such as {place}; use a model whose template does"
            )
            return text.format(place=place)
        return _("the chat template leaves out or changes the text of {place}").format(place=place)

    @cached_property
    def prompt_text(self) -> str:
        """The prompt that asks for the message."""
        return self.whole.render(self.whole.turns[: self.i], prompt=True)

    @cached_property
    def text_through_message(self) -> str:
        """The whole text of a conversation that ends with this message."""
        if self.i + 1 == len(self.whole.turns):
            return self.whole.text
        return self.whole.render(self.whole.turns[: self.i + 1])

    @cached_property
    def begin(self) -> TargetSpan | None:
        """An empty span where the message begins, or None if text and prompt differ before it."""
        text, prompt = self.whole.text, self.prompt_text
        if text.startswith(prompt):
            return TargetSpan(len(prompt), len(prompt))
        head = self.whole.render(self.whole.turns[: self.i])
        common = _common(prompt, text)
        in_this_turn = common > _common(head, prompt) and common >= self.cursor
        return TargetSpan(common, common, unlike_prompt=True) if in_this_turn else None

    def from_prompt(self) -> TargetSpan | None:
        """Return the span if the text equals the prompt, then the message; None in all other cases."""
        text, begin, end = self.whole.text, self.begin, len(self.text_through_message)
        if begin is None or not text.startswith(self.text_through_message):
            return None
        if self.turn.calls:
            mark = self.whole.tokenizer.end_of_turn.strip()
            if mark and mark in self.turn.calls + self.turn.content:
                return None  # the end of the turn cannot be told from the text of the message
            end = begin.begin + len(self._call_in(text[begin.begin : end]))
            return replace(begin, end=end) if self._has_calls(text[begin.begin : end]) else None
        for words in _wordings(self.turn.content):
            answer = words + self.whole.tokenizer.end_of_turn
            # A template may put an empty thought before the message's text; the thought is part of the target.
            at = text.rfind(answer, max(begin.begin - 1, 0), end)
            if at >= 0 and (at >= begin.begin or begin.unlike_prompt):
                return TargetSpan(min(begin.begin, at), at + len(answer), begin.unlike_prompt)
        return None

    def _call_in(self, said: str) -> str:
        """Return `said`, the text of calls and what follows them, up to the end of the turn."""
        end_of_turn = self.whole.tokenizer.end_of_turn
        at = said.rfind(end_of_turn) if end_of_turn else -1
        return said[: at + len(end_of_turn)] if at >= 0 else said.rstrip()

    def _has_calls(self, said: str) -> bool:
        calls = json.loads(self.turn.calls)
        words = (word for call in calls for word in _texts_in(call["arguments"]))
        return all(call["name"] in said for call in calls) and all(word in said for word in words)

    @cached_property
    def own(self) -> list[Piece]:
        """The pieces of the message in the whole text."""
        return [piece for piece in self.whole.pieces if piece.message == self.i]

    def foreign_in(self, begin: int, end: int) -> bool:
        """Return whether the characters from `begin` to before `end` contain text of another message."""
        return any(p.begin < end and p.end > begin for p in self.whole.pieces if p.message != self.i)

    def from_marks(self) -> TargetSpan | None:
        """Return the span between the marks of the message's texts, or None if it cannot be told."""
        if not self.own or (not self.turn.calls and all(piece.kind == "thought" for piece in self.own)):
            return None
        begin, end = self._begin_before(self.own[0]), self._end()
        if begin is None or end is None or self.foreign_in(begin.begin, end):
            return None
        return self.checked(replace(begin, end=end))

    def checked(self, span: TargetSpan) -> TargetSpan | None:
        """Return `span` unless a call of the message is incomplete in it."""
        return span if not self.turn.calls or self._has_calls(self.whole.text[span.begin : span.end]) else None

    def _begin_before(self, first: Piece) -> TargetSpan | None:
        """Return an empty span where the message begins: behind the prompt's end, as far as the text has it."""
        prompt, head = self.whole.marked(self.i, prompt=True), self.whole.marked(self.i)
        if not prompt or not prompt.pieces or not head:
            return None
        last = prompt.pieces[-1]
        before = [
            p for p in self.whole.pieces if (p.message, p.kind) == (last.message, last.kind) and p.end <= first.begin
        ]
        heads = head.of(last.message)
        if not before or not heads:
            return None
        ending, start = prompt.text[last.end :], before[-1].end
        common = _common(ending, self.whole.text[start : first.begin])
        if common < len(ending) and common <= _common(ending, head.text[heads[-1].end :]):
            return None  # the text differs before the prompt for the answer begins
        return TargetSpan(start + common, start + common, unlike_prompt=common < len(ending))

    def _end(self) -> int | None:
        """Return the end of the turn behind the message's last text, which a conversation up to here ends with."""
        alone = self.whole.marked(self.i + 1)
        pieces = alone.of(self.i) if alone else []
        if not alone or not pieces:
            return None
        text, last, ending = self.whole.text, pieces[-1], alone.text[pieces[-1].end :]
        space = self.turn.content[len(self.turn.content.rstrip()) :] if last.kind == "words" else ""
        space = space if ending.startswith(space) else ""
        ending = self._call_in(ending) if self.turn.calls else space + (END.match(ending, len(space)) or [""])[0]
        alike = [p.end for p in self.own if text[p.begin : p.end] == alone.text[last.begin : last.end]]
        for at in alike:
            if text.startswith(ending, at):
                return at + len(ending)
            if token := self.whole.tokenizer.special_token_at(text, at + len(space)):
                return at + len(space) + len(token)
        return None

    def with_next_token(self, span: TargetSpan) -> TargetSpan:
        """Return `span` with the special token that follows it, if the template writes no end of turn.

        The model stops by that token: for GLM-4.5, <|user|> or <|observation|>.
        """
        following = self.whole.turns[self.i + 1 : self.i + 2]
        if self.whole.tokenizer.end_of_turn or not following or following[0].role == "assistant":
            return span
        token = self.whole.tokenizer.special_token_at(self.whole.text, span.end)
        return replace(span, end=span.end + len(token))


class _AlikeMessages:
    """Spans of the messages that were found, by the text around them, for conversations of at least MANY messages.

    A message between the same texts as an earlier one has its span at the same distances from its own texts. Without
    this, the time for a long conversation is quadratic: the search renders the conversation for each message.
    """

    def __init__(self, whole: _Whole) -> None:
        self.whole = whole
        self.own: dict[int, list[int]] = {}  # message -> places of its pieces in `whole.pieces`
        self.found: dict[tuple[object, ...], tuple[int, int, bool]] = {}  # surroundings -> distances of the span
        for place, piece in enumerate(whole.pieces if len(whole.turns) >= MANY else []):
            self.own.setdefault(piece.message, []).append(place)

    def _surroundings(self, i: int) -> tuple[Span, tuple[object, ...]] | None:
        """Return the characters from the first to the last text of message `i`, and what is around them."""
        own, pieces, text, turns = self.own.get(i), self.whole.pieces, self.whole.text, self.whole.turns
        if not own or own[-1] - own[0] + 1 != len(own):
            return None
        begin, end = pieces[own[0]].begin, pieces[own[-1]].end
        before, behind = pieces[max(0, own[0] - 1) : own[0]], pieces[own[-1] + 1 : own[-1] + 2]
        head = text[before[0].end if before else 0 : begin]
        tail = text[end : behind[0].begin if behind else len(text)]
        near = [(one.message - i, one.kind, turns[one.message].role) for one in (*before, *behind)]
        return (begin, end), (head, tail, *near, bool(behind), *(pieces[place].kind for place in own))

    def add(self, i: int, span: TargetSpan) -> None:
        if around := self._surroundings(i):
            (begin, end), key = around
            if span.begin <= begin and end <= span.end:
                self.found[key] = (begin - span.begin, span.end - end, span.unlike_prompt)

    def span_of(self, search: "_MessageSearch") -> TargetSpan | None:
        """Return the span of a message between the same texts as an earlier one, or None."""
        if (around := self._surroundings(search.i)) is None or around[1] not in self.found:
            return None
        (begin, end), (before, behind, unlike_prompt) = around[0], self.found[around[1]]
        return search.checked(TargetSpan(begin - before, end + behind, unlike_prompt))


def _common(one: str, other: str) -> int:
    return len(commonprefix([one, other]))  # noqa: RUF071 (by character, as is wanted)


def _wordings(content: str) -> list[str]:
    """Return the forms of a message's text that a template may write: unchanged, stripped, or without the thought."""
    wordings = [content, content.strip()]
    if END_OF_THOUGHT in content:
        behind = content.rpartition(END_OF_THOUGHT)[2]
        wordings += [behind, behind.lstrip("\n"), behind.strip()]
    return list(dict.fromkeys(wordings))


def content_spans(turns: Conversation, text: str, targets: Sequence[TargetSpan]) -> tuple[list[Span], list[Span], bool]:
    """Return the spans of user and tool messages, those of system messages, and whether some of their text is missing.

    A text that is found inside one of `targets` only is left out.
    """
    questions: list[Span] = []
    systems: list[Span] = []
    missing, cursor = False, 0
    for turn in turns:
        if turn.role == TOOLS:
            missing = missing or any(name not in text for name in NAME.findall(turn.content))
        if turn.role in ("assistant", TOOLS):
            continue
        words = turn.content.strip()
        at = text.find(words, cursor)
        if at < 0 and words not in text:  # some templates write the results of functions as JSON
            words = json.dumps(words, ensure_ascii=False)[1:-1]
            at = text.find(words, cursor)
        while at >= 0 and (target := _overlapping(at, at + len(words), targets)):
            at = text.find(words, target.end)
        if at < 0:
            missing = missing or words not in text  # some templates move the system message
            continue
        cursor = at + len(words)
        (systems if turn.role == "system" else questions).append((at, cursor))
    return questions, systems, missing


def _overlapping(begin: int, end: int, targets: Sequence[TargetSpan]) -> TargetSpan | None:
    return next((target for target in targets if begin < target.end and target.begin < end), None)
