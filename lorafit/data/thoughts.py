"""Thoughts of reasoning models: what the chat template does with them in training, and how a chat is prompted then.

A thought is the text that a model writes before its answer, often between <think> and </think>. Templates differ: they
remove the thoughts of earlier answers or of all, add an empty thought, or open one in the generation prompt.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from os.path import commonprefix
from typing import Any, NamedTuple

from lorafit.data.conversation import END_OF_THOUGHT, Conversation, Message
from lorafit.data.target_spans import TargetSpan, Tokenizer, target_spans
from lorafit.errors import DataError
from lorafit.messages import _
from lorafit.units import count_text

MARKUP = re.compile(r"<[^<>]*(?:think|thought)[^<>]*>|\[/?THINK\]|<\|channel>thought", re.IGNORECASE)
OPENED = re.compile(r"<think>\s*\Z")
EMPTY = re.compile(r"\s*(?:<think>\s*)?</think>")
# Pieces of a generation prompt: it is cut only between two of them.
PIECE = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\s|[^<\[\s]+|.")
TOLERATED = 0.05  # share of rows that may be otherwise than the rest: odd rows stop no training
AHEAD = 64  # characters behind a prompt that are tokenized with it
HIDDEN = "\ue000" * len(END_OF_THOUGHT)  # stands for </think> where the template would remove the text before it


class RowThoughts(NamedTuple):
    """The thoughts of a row, and what the template does with them. Equal for all rows: `switch` and `opening`.

    `lost`: the template omits the thought of the last answer. `earlier`: earlier answers are learned without a thought
    that the row has or the prompt opens. `added`: the last answer is learned with an empty thought. `kept`: lorafit wrote
    the last answer's thought, which the template removes. `untrained`: the end of the prompt that the sample does not have
    before its last answer. `usual`: the answer is learned, and its prompt ends as for a single question. `opening`: the thought's part in the
    template's prompt. `switch`: the template has a switch for thoughts.
    """

    carries: bool
    lost: bool
    earlier: bool
    added: bool
    kept: bool
    untrained: str
    usual: bool
    opening: str
    switch: bool


def split_thought(turn: Message) -> tuple[str, str]:
    """Return the thought of an answer without its tags, and the text behind it."""
    head, tag, words = turn.content.rpartition(END_OF_THOUGHT)
    if not tag:
        return turn.thought.strip(), turn.content
    return (turn.thought or head.rpartition("<think>")[2]).strip(), words.lstrip()


def without_thoughts(turns: Conversation) -> Conversation:
    """Return the conversation without the thoughts of its answers."""
    return [
        replace(turn, content=split_thought(turn)[1], thought="") if turn.role == "assistant" else turn
        for turn in turns
    ]


def spans_and_thoughts(
    turns: Conversation, tokenizer: Tokenizer, date_string: str
) -> tuple[str, list[TargetSpan], bool, RowThoughts | None]:
    """Return the result of `target_spans`, and the row's thoughts; None if row and template know none.

    If the template removes the last answer's thought, but its prompt opens one, the thought is kept in the text.
    Raises BadRow or TemplateRefused.
    """
    text, spans, dropped = target_spans(turns, tokenizer, date_string)
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    thoughts = {i: split_thought(turns[i])[0] for i in answers}
    if not answers or not (tokenizer.knows_thoughts or any(thoughts.values())):
        return text, spans, dropped, None
    last, kept, learned = answers[-1], False, spans[-1].learned
    prompt = tokenizer.render_text(turns[:last], True, date_string)
    lost = learned and _lacks(_said(text, spans[-1]), thoughts[last])
    if lost and (better := _kept(turns, last, prompt, tokenizer, date_string)):
        (text, spans, dropped), lost, kept = better, False, True
    opening = thought_part(tokenizer.generation_prompt)
    untrained = _untrained_end(prompt, text, tokenizer)
    begin = len(prompt) - len(untrained)
    if untrained and begin < spans[-1].begin:
        spans = [*spans[:-1], replace(spans[-1], begin=begin, unlike_prompt=True)]
    opened = bool(opening) and not untrained.strip()  # the last answer is learned behind the opened thought
    facts = RowThoughts(
        carries=any(thoughts.values()),
        lost=lost,
        earlier=any(
            span.learned and (_lacks(_said(text, span), thoughts[i]) or (opened and span.unlike_prompt))
            for i, span in zip(answers[:-1], spans[:-1], strict=True)
        ),
        added=learned and not thoughts[last] and EMPTY.match(_said(text, spans[-1])) is not None,
        kept=kept,
        untrained=untrained,
        usual=learned and prompt.endswith(tokenizer.generation_prompt),
        opening=opening,
        switch=tokenizer.thought_switch is not None,
    )
    return text, spans, dropped, facts


def _said(text: str, span: TargetSpan) -> str:
    return text[span.begin : span.end]


def _lacks(said: str, thought: str) -> bool:
    """Return whether `said` is without `thought`, whatever white space a template changes."""
    return thought not in said and "".join(thought.split()) not in "".join(said.split())


def thought_part(generation_prompt: str) -> str:
    """Return the part of a generation prompt that opens a thought or writes an empty one; "" if there is none."""
    found = MARKUP.search(generation_prompt)
    return generation_prompt[found.start() :] if found else ""


def _kept(
    turns: Conversation, last: int, prompt: str, tokenizer: Tokenizer, date_string: str
) -> tuple[str, list[TargetSpan], bool] | None:
    """Return spans of the text with the thought of message `last` behind the prompt; None if it cannot be written."""
    opened, turn = OPENED.search(prompt), turns[last]
    if opened is None or any(HIDDEN[0] in one.content + one.calls for one in turns):
        return None
    thought, words = split_thought(turn)
    line = "\n" if opened[0].endswith("\n") else ""
    content = f"{opened[0]}{thought}{line}{HIDDEN}{line * 2}{words.lstrip()}"
    whole = [*turns[:last], replace(turn, content=content, thought=""), *turns[last + 1 :]]
    text, spans, dropped = target_spans(whole, tokenizer, date_string)
    text = text.replace(HIDDEN, END_OF_THOUGHT)  # equally long: the spans stay right
    if not text.startswith(prompt + thought):
        return None
    dropped = dropped or bool(turn.content.rpartition(END_OF_THOUGHT)[0].rpartition("<think>")[0].strip())
    return text, [*spans[:-1], replace(spans[-1], begin=len(prompt), unlike_prompt=False)], dropped


def _untrained_end(prompt: str, text: str, tokenizer: Tokenizer) -> str:
    """Return the end of `prompt` whose tokens `text` does not have, within the part of the prompt about thoughts.

    A token may differ where the characters do not: "\\n\\n" in the text is often one token, which a prompt that ends with
    one line break does not have.
    """
    part = thought_part(tokenizer.generation_prompt)
    start, common = len(prompt) - len(part), len(commonprefix([prompt, text]))  # noqa: RUF071 (by character)
    if not part or not prompt.endswith(part) or common < start:
        return ""  # there is none, or the texts differ for other reasons
    head = len(prompt) - len(tokenizer.generation_prompt)
    ids = tokenizer.encode_with_offsets(text[head : len(prompt) + AHEAD])[0]
    for edge in [start + found.end() for found in PIECE.finditer(part)][::-1]:
        if edge <= common:
            before = tokenizer.encode_with_offsets(prompt[head:edge])[0]
            if list(ids[: len(before)]) == list(before):
                return prompt[edge:]
    return part


@dataclass
class ThoughtUse:
    """Counts of rows by their thoughts, without rows where neither data nor template know thoughts."""

    rows: Counter[RowThoughts] = field(default_factory=Counter)

    def add(self, rows: Iterable[RowThoughts | None]) -> None:
        """Count the thoughts of rows."""
        self.rows.update(row for row in rows if row is not None)

    def to_json(self) -> list[list[Any]]:
        return [[*row, count] for row, count in self.rows.items()]

    @classmethod
    def from_json(cls, facts: list[list[Any]]) -> "ThoughtUse":
        """Return the counts that `to_json` wrote."""
        return cls(Counter({RowThoughts(*row): count for *row, count in facts}))

    def count(self, name: str) -> int:
        """Return the number of rows for which the fact `name` of RowThoughts holds."""
        return sum(count for row, count in self.rows.items() if getattr(row, name))

    @property
    def _ends(self) -> Counter[str]:
        """Rows by the end of the prompt that they were not trained with, "" for none."""
        found: Counter[str] = Counter()
        for row, count in self.rows.items():
            if row.usual:
                found[row.untrained] += count
        return found

    @property
    def untrained(self) -> str:
        """The end of the template's generation prompt that a chat leaves out, because the samples do not have it."""
        ends = self._ends
        return max(ends, key=lambda end: (ends[end], end == "")) if ends else ""

    def notes(self) -> Iterator[str]:
        """Yield in words what training, chat and export do with thoughts."""
        if carrying := self.count("carries"):
            yield _("Rows with thoughts (text before an answer, such as <think>...</think>): {n}.").format(
                n=count_text(carrying)
            )
        if kept := self.count("kept"):
            text = _("The chat template removes the thought of the last answer; lorafit writes it, in rows: {n}.")
            yield text.format(n=count_text(kept))
        if earlier := self.count("earlier"):
            text = _(
                "The chat template writes earlier answers of a conversation without thoughts, and they are learned so, "
                "in rows: {n}. `--train_on last` learns only the last answer."
            )
            yield text.format(n=count_text(earlier))
        if added := self.count("added"):
            text = _("The chat template adds an empty thought to answers without one. It is learned, in rows: {n}.")
            yield text.format(n=count_text(added))
        if lost := self.count("lost"):
            text = _("The chat template leaves out the thought of the last answer, in rows: {n}.")
            yield text.format(n=count_text(lost))
        if self.problem() is None:
            yield from self._prompt_notes()

    def _prompt_notes(self) -> Iterator[str]:
        opening = next((row.opening for row in self.rows if row.opening), "")
        if not opening:
            return
        untrained = self.untrained
        if not untrained:
            text = _("The prompt of an answer ends with {text}, in training, chat and export.")
            yield text.format(text=shown(opening))
        else:
            text = _(
                "The chat template's prompt ends with {text}. The samples do not have {left_out} before the answer, so "
                "chat and export leave it out."
            )
            yield text.format(text=shown(opening), left_out=shown(untrained))
        if len(self._ends) > 1:
            text = _("Other rows start in another way before the answer: {n}.")
            yield text.format(n=count_text(self._ends.total() - self._ends[untrained]))
            if self._has_switch:
                yield _("The chat template has a switch for thoughts: `--thinking on` and `off` in chat and export.")

    @property
    def _has_switch(self) -> bool:
        return any(row.switch for row in self.rows)

    def check(self) -> None:
        """Raise the DataError of `problem`. A run that trained on the data before is not checked."""
        if problem := self.problem():
            raise problem

    def problem(self) -> DataError | None:
        """Return the error for data that cannot be trained as they will be prompted, or None."""
        if (lost := self.count("lost")) > TOLERATED * self.count("carries"):
            return DataError(
                _("The chat template leaves out the thoughts of answers, so they would not be learned."),
                where="dataset_name",
                found=_("rows: {n}, of {all} with thoughts").format(
                    n=count_text(lost), all=count_text(self.count("carries"))
                ),
                fix=_("Train without them: `--thoughts drop`. Or set --chat_template to one that writes them."),
            )
        ends = self._ends
        others = sum(rows for end, rows in ends.items() if end.strip() != self.untrained.strip())
        if not self._has_switch and others > TOLERATED * ends.total():
            found = _("rows that start with it: {some}; rows without: {others}")
            return DataError(
                _("The chat template's prompt opens a thought, but only some rows have one."),
                where="dataset_name",
                found=found.format(some=count_text(ends[""]), others=count_text(ends.total() - ends[""])),
                fix=_("Train without thoughts: `--thoughts drop`. Or keep only the rows with thoughts."),
            )
        return None


def shown(text: str) -> str:
    """Return a part of a prompt as a user reads it: line breaks as codes, in code marks."""
    return "`" + text.replace("\n", "\\n") + "`"
