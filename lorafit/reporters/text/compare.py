"""Texts and marks of a comparison, shared by the terminal and the HTML page."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from lorafit.evaluation.compare import Answer, Comparison, ModelResult, Question, ValidationLosses
from lorafit.evaluation.metrics import CITATION, citations
from lorafit.messages import _, aside, listed

Kind = Literal["plain", "same", "cited", "agrees", "differs"]
SAME_CHARACTERS = 6  # shorter matches between two answers are not marked


@dataclass(frozen=True)
class ComparisonCell:
    """A figure of one model. `note` is shown below it; `better`: better than the base model, None if undecided."""

    text: str
    note: str = ""
    better: bool | None = None


@dataclass(frozen=True)
class ComparisonRow:
    """A figure of all models, the base model first; `note` says how the figure is measured."""

    label: str
    note: str
    cells: list[ComparisonCell]


def title(comparison: Comparison) -> str:
    """Return the title, with the name of the fine-tuned model if there is only one."""
    only = [comparison.tuned[0].name] if len(comparison.tuned) == 1 else []
    return " · ".join([_("Answers before and after fine-tuning"), *only])


def subtitle(comparison: Comparison) -> str:
    """Return the base model, the source of the questions and the sampling settings."""
    sampling = comparison.sampling
    how = (
        _("greedy, at most {n} tokens per answer")
        if sampling.temperature == 0
        else _("temperature {t:g}, top_p {p:g}, seed {seed}, at most {n} tokens per answer")
    )
    how = how.format(t=sampling.temperature, p=sampling.top_p, seed=sampling.seed, n=sampling.max_new_tokens)
    return " · ".join([aside(comparison.base_model, comparison.setting), comparison.source, how])


# figures


def lines(comparison: Comparison) -> list[ComparisonRow]:
    """Return the figures that exist, losses first."""
    return [*_loss_lines(comparison), *_answer_lines(comparison)]


def _loss_lines(comparison: Comparison) -> list[ComparisonRow]:
    known = [side.losses for side in comparison.tuned if side.losses is not None]
    if not known:
        return []
    one_base = len({(losses.base, losses.rows) for losses in known}) == 1
    rows, targets = known[0].rows, known[0].base.num_targets
    measured = (
        _("nats per token; tokens: {tokens:,}, rows: {rows}").format(tokens=targets, rows=rows)
        if one_base
        else _("nats per token, on each run's own validation rows")
    )
    interval = _("95% bootstrap interval; below 0 is better")

    def told(mean: Callable[[float], str]) -> list[ComparisonCell]:
        base = ComparisonCell(mean(known[0].base.mean) if one_base else "")
        return [base, *(_loss_cell(side.losses, mean, one_base) for side in comparison.tuned)]

    return [
        ComparisonRow(_("validation loss"), measured, told(lambda loss: f"{loss:.4f}")),
        ComparisonRow(
            _("difference from the base model"),
            interval,
            [ComparisonCell(""), *(_difference(s.losses) for s in comparison.tuned)],
        ),
        ComparisonRow(_("perplexity"), "", told(_perplexity)),
    ]


def _loss_cell(losses: ValidationLosses | None, mean: Callable[[float], str], one_base: bool) -> ComparisonCell:
    if losses is None:
        return ComparisonCell("?")
    text = mean(losses.tuned.mean) if one_base else f"{mean(losses.base.mean)} → {mean(losses.tuned.mean)}"
    return ComparisonCell(text, better=_better(losses))


def _better(losses: ValidationLosses) -> bool | None:
    """Return whether the loss is lower than the base model's; None without an interval, or if it contains 0."""
    sure = losses.difference
    return None if sure is None or sure.low <= 0 <= sure.high else sure.mean < 0


def _difference(losses: ValidationLosses | None) -> ComparisonCell:
    if losses is None:
        return ComparisonCell("?")
    if losses.difference is None:
        return ComparisonCell(f"{losses.tuned.mean - losses.base.mean:+.4f}", _("one row: no interval"))
    sure, better = losses.difference, _better(losses)
    return ComparisonCell(f"{sure.mean:+.4f}", f"[{sure.low:+.4f}, {sure.high:+.4f}]", better)


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):,.2f}" if loss < 50 else f"e^{loss:.0f}"


def _answer_lines(comparison: Comparison) -> list[ComparisonRow]:
    sides, longest = comparison.results, comparison.sampling.max_new_tokens
    found = [
        (_("chrF, ROUGE-L"), _("similarity to the references, 0 to 100"), [_likeness(s) for s in sides]),
        (_("cites a statute (《…》第…条)"), "", [_share(s, s.stats.citing) for s in sides]),
        (_("cites a statute that the reference cites"), "", [_share(s, s.stats.same_citation) for s in sides]),
        (_("mean length in characters"), "", [ComparisonCell(f"{s.stats.characters:,.0f}") for s in sides]),
        (_("truncated at {n} tokens").format(n=longest), "", [_share(s, s.stats.truncated) for s in sides]),
    ]
    return [ComparisonRow(label, note, cells) for label, note, cells in found if any(cell.text for cell in cells)]


def _likeness(side: ModelResult) -> ComparisonCell:
    found = side.stats.likeness
    return ComparisonCell("" if found is None else listed([f"{found.chrf:.1f}", f"{found.rouge_l:.1f}"]))


def _share(side: ModelResult, count: int | None) -> ComparisonCell:
    return ComparisonCell("" if count is None else f"{count}/{side.stats.answers}")


# answers


def question_text(place: int, question: Question) -> str:
    """Return the question with its number `place`; "…" stands for earlier turns."""
    earlier = "… " if any(turn.role == "assistant" for turn in question.turns) else ""
    return f"{place}. {earlier}{question.text}"


def answer_pieces(comparison: Comparison, side: ModelResult, place: int) -> list[tuple[str, Kind]]:
    """Return the pieces of the answer of `side` to question `place` (from 0)."""
    base = None if side is comparison.base else comparison.base.answers[place]
    return split_answer(side.answers[place], comparison.questions[place], base)


def split_answer(answer: Answer, question: Question, base: Answer | None) -> list[tuple[str, Kind]]:
    """Split the answer into pieces with their kinds.

    Statutes: "agrees" if the reference cites them too, "differs" if it does not, "cited" without a reference. "same": text
    that also occurs in the answer of `base`. "plain": the rest.
    """
    kinds: list[Kind] = ["plain"] * len(answer.text)
    if base is not None:
        for block in SequenceMatcher(None, base.text, answer.text, autojunk=False).get_matching_blocks():
            if block.size >= SAME_CHARACTERS:
                kinds[block.b : block.b + block.size] = ["same"] * block.size
    for match in CITATION.finditer(answer.text):
        kinds[match.start() : match.end()] = [_cited(match[0], question.reference)] * len(match[0])
    text, parts = answer.text, []
    for kind, group in itertools.groupby(range(len(text)), key=kinds.__getitem__):
        places = list(group)
        parts.append((text[places[0] : places[-1] + 1], kind))
    return parts


def _cited(statute: str, reference: str | None) -> Kind:
    if reference is None:
        return "cited"
    return "agrees" if citations(statute) <= citations(reference) else "differs"


def answer_note(answer: Answer) -> str:
    """Return a note if the answer is truncated or empty, else ""."""
    if answer.truncated:
        return _("truncated after {n} tokens").format(n=answer.tokens)
    return "" if answer.text else _("empty answer")


def legend(comparison: Comparison) -> list[tuple[Kind, str]]:
    """Return the kinds of pieces that occur, with their meanings."""
    meanings: dict[Kind, str] = {
        "agrees": _("statute that the reference also cites"),
        "differs": _("statute that the reference does not cite"),
        "cited": _("statute"),
        "same": _("same words as the base model"),
    }
    occurring = {
        kind
        for place, question in enumerate(comparison.questions)
        for side in comparison.results
        for _text, kind in answer_pieces(comparison, side, place)
    }
    return [(kind, meaning) for kind, meaning in meanings.items() if kind in occurring]
