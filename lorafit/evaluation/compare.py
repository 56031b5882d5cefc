"""Did the tuning help? The same questions and the same held-out rows, with adapters and without.

Letters: S samples.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lorafit.data.formats import BadRow, Conversation, Message, to_conversation
from lorafit.data.micro_batch import Sample, pack
from lorafit.data.sources import read_rows
from lorafit.engines.base import Engine, LossSum
from lorafit.errors import DataError, LorafitError
from lorafit.evaluation.chat import ChatTokens, text_pieces
from lorafit.evaluation.metrics import Float64, LossDifference, ReferenceScores, bootstrap, citations, likeness
from lorafit.evaluation.validation import ValidationRows
from lorafit.messages import _, listed
from lorafit.progress import Say
from lorafit.sampling import Sampling
from lorafit.units import seconds_text


@dataclass(frozen=True)
class Question:
    """What is asked: the turns up to it, and the reference answer where there is one."""

    turns: Conversation
    reference: str | None = None

    @property
    def text(self) -> str:
        """The last turn, which is the question itself."""
        return self.turns[-1].content


@dataclass(frozen=True)
class Answer:
    """A model's answer; `cut` where it came to no end within max_new_tokens."""

    text: str
    tokens: int
    cut: bool


@dataclass(frozen=True)
class AnswerStats:
    """What can be counted about a model's answers; None where there are no references, or no package to compute it."""

    answers: int
    characters: float  # mean
    cut: int
    citing: int  # answers that cite a statute
    agreeing: int | None  # answers that cite one which the reference cites
    likeness: ReferenceScores | None


@dataclass(frozen=True)
class ValidationLosses:
    """Of an adapter and of its base on the rows that its run held out; `difference` None for a single row."""

    rows: int
    base: LossSum
    tuned: LossSum
    difference: LossDifference | None


@dataclass(frozen=True)
class ModelResult:
    """One of the models compared; `losses` None for the base, and where a run's held-out rows cannot be had."""

    name: str
    answers: list[Answer]
    figures: AnswerStats
    losses: ValidationLosses | None = None


@dataclass(frozen=True)
class Comparison:
    """The base and what was tuned from it. `setting` is device and numbers, `source` tells which questions, `notes` what is amiss."""

    base_model: str
    setting: str
    source: str
    sampling: Sampling
    questions: list[Question]
    base: ModelResult
    tuned: list[ModelResult]
    notes: list[str]

    @property
    def sides(self) -> list[ModelResult]:
        return [self.base, *self.tuned]


@dataclass(frozen=True)
class ModelUnderTest:
    """An adapter to be compared: how to load it on its base, how it is spoken to, and the rows its run held out."""

    name: str
    open: Callable[[], Engine]
    tokenizer: ChatTokens
    date_string: str
    system_prompt: str | None
    held_out: ValidationRows | None


def compare_models(
    contestants: Sequence[ModelUnderTest], questions: Sequence[Question], sampling: Sampling, say: Say
) -> tuple[list[ModelResult], list[str]]:
    """The base (asked as the first contestant is) and each contestant, one loaded at a time; words on what is left out."""
    sides: list[tuple[str, list[Answer], ValidationLosses | None]] = []
    base_losses: dict[str, Float64] = {}  # by the held-out rows' digest
    for left, contestant in zip(range(len(contestants) - 1, -1, -1), contestants, strict=True):
        engine = contestant.open()
        if not sides:
            engine.set_adapter(False)
            tell = _told(say, _("base"), left + 1)
            sides.append((_("base"), _answers(engine, contestant, questions, sampling, tell), None))
        losses = _losses(engine, contestant, base_losses, say)
        engine.set_adapter(True)
        answers = _answers(engine, contestant, questions, sampling, _told(say, contestant.name, left))
        sides.append((contestant.name, answers, losses))
        del engine  # before the next is loaded
    references = [question.reference for question in questions]
    notes: list[str] = []
    return [ModelResult(name, a, count_up(a, references, notes), losses) for name, a, losses in sides], notes


def _told(say: Say, name: str, sides: int) -> Callable[[int, int], None]:
    """Tells how many answers are done, and about how long the rest and those of `sides` models yet to come will take."""
    began = time.monotonic()

    def tell(done: int, total: int) -> None:
        told = _("{name} answers {count}/{total}").format(name=name, count=done, total=total)
        if done and (more := total - done + sides * total):
            left = seconds_text((time.monotonic() - began) / done * more)
            told = listed([told, _("about {left} left").format(left=left)])
        say(f"{told} ...")

    return tell


def _answers(
    engine: Engine,
    contestant: ModelUnderTest,
    questions: Sequence[Question],
    sampling: Sampling,
    tell: Callable[[int, int], None],
) -> list[Answer]:
    tokenizer = contestant.tokenizer
    sampling = replace(sampling, stop_ids=tokenizer.stop_ids)
    prompts = [tokenizer.prompt_ids(q.turns, contestant.date_string, contestant.system_prompt) for q in questions]
    answers: dict[int, Answer] = {}
    tell(0, len(prompts))
    for done in engine.answers(prompts, sampling):
        for place, ids in done.items():
            text = "".join(text_pieces(ids, tokenizer.decode)).strip()
            answers[place] = Answer(text, len(ids), len(ids) >= sampling.max_new_tokens)
        tell(len(answers), len(prompts))
    return [answers[place] for place in range(len(prompts))]


def _losses(
    engine: Engine, contestant: ModelUnderTest, base_losses: dict[str, Float64], say: Say
) -> ValidationLosses | None:
    """Of base and contestant on the contestant's rows; the base's are kept in `base_losses` for the next."""
    if contestant.held_out is None:
        return None
    samples, key = list(contestant.held_out.samples), contestant.held_out.digest
    if key not in base_losses:
        engine.set_adapter(False)
        base_losses[key] = sample_losses(engine, samples, _evaluated(say, _("base")))
    engine.set_adapter(True)
    base_S, tuned_S = base_losses[key], sample_losses(engine, samples, _evaluated(say, contestant.name))
    tokens_S = np.array([sample.num_targets for sample in samples], np.int64)
    total = int(tokens_S.sum())
    sums = LossSum(float(base_S.sum()), total), LossSum(float(tuned_S.sum()), total)
    return ValidationLosses(len(samples), *sums, bootstrap(base_S, tuned_S, tokens_S))


def _evaluated(say: Say, name: str) -> Callable[[int, int], None]:
    def tell(count: int, total: int) -> None:
        say(_("Held-out loss of {name}: row {count}/{total} ...").format(name=name, count=count, total=total))

    return tell


def sample_losses(engine: Engine, samples: Sequence[Sample], tell: Callable[[int, int], None]) -> Float64:
    """Loss [S] (nats) summed over each sample's targets, sample by sample, since an engine gives one sum a call."""
    losses = []
    for place, sample in enumerate(samples):
        tell(place + 1, len(samples))
        losses.append(engine.evaluate([pack([sample], [place], [0])]).loss_sum)
    return np.array(losses, np.float64)


def count_up(answers: Sequence[Answer], references: Sequence[str | None], notes: list[str]) -> AnswerStats:
    """The figures of `answers`; what cannot be computed is added to `notes`, once."""
    known = [(a.text, r) for a, r in zip(answers, references, strict=True) if r is not None]
    return AnswerStats(
        answers=len(answers),
        characters=float(np.mean([len(answer.text) for answer in answers])),
        cut=sum(answer.cut for answer in answers),
        citing=sum(bool(citations(answer.text)) for answer in answers),
        agreeing=sum(bool(citations(text) & citations(reference)) for text, reference in known) if known else None,
        likeness=_likeness(known, notes),
    )


def _likeness(known: list[tuple[str, str]], notes: list[str]) -> ReferenceScores | None:
    if not known:
        return None
    try:
        return likeness([text for text, _reference in known], [reference for _text, reference in known])
    except LorafitError as error:
        note = _("chrF and ROUGE-L are left out: {reason}").format(reason=f"{error.what} {error.fix or ''}".strip())
        if note not in notes:
            notes.append(note)
        return None


# questions


def asked_of_rows(conversations: Sequence[Conversation]) -> list[Question]:
    """The last answer of each conversation is the reference, what comes before it is asked."""
    return [Question(turns[:-1], turns[-1].content) for turns in conversations]


def asked_of_lines(lines: Sequence[str]) -> list[Question]:
    """Each line is a question; there is no reference."""
    return [Question([Message("user", line)]) for line in lines]


def asked_of_file(path: Path) -> list[Question]:
    """Questions and reference answers in a data file (JSON, JSON Lines, CSV; see data/formats.py). Raises DataError."""
    conversations = []
    for row in read_rows(str(path), "train"):
        try:
            conversations.append(to_conversation(row.value))
        except BadRow as bad:
            fix = _("Give rows with question and answer, or a text file with one question a line.")
            raise DataError(
                _("A row of the test file holds no question with an answer."),
                where=f"{row.file}:{row.line}",
                found=bad.reason,
                fix=fix,
            ) from None
    return asked_of_rows(conversations)
