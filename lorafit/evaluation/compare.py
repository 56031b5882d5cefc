"""Comparison of adapters with their base model on the same questions and the same validation rows.

Axis letters: S samples.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lorafit.data.conversation import BadRow, Conversation, Message
from lorafit.data.formats import to_conversation
from lorafit.data.micro_batch import Sample, pack
from lorafit.data.sources import read_rows
from lorafit.engines.base import Engine, LossSum
from lorafit.errors import DataError, LorafitError
from lorafit.evaluation.chat import ChatTokens, beyond_note, check_room, text_pieces
from lorafit.evaluation.metrics import Float64, LossDifference, ReferenceScores, bootstrap, citations, reference_scores
from lorafit.evaluation.validation import ValidationRows
from lorafit.messages import _, phrases
from lorafit.models.positions import Positions, hard_limit
from lorafit.progress import ProgressCallback
from lorafit.sampling import Sampling
from lorafit.units import seconds_text


@dataclass(frozen=True)
class Question:
    """A question: `turns` are the messages up to and with it, `reference` is the reference answer or None."""

    turns: Conversation
    reference: str | None = None

    @property
    def text(self) -> str:
        """The text of the last message, which is the question itself."""
        return self.turns[-1].content


@dataclass(frozen=True)
class Answer:
    """The answer of a model. `truncated` means that it reached max_new_tokens without a stop token."""

    text: str
    tokens: int
    truncated: bool


@dataclass(frozen=True)
class AnswerStats:
    """Statistics of a model's answers. `reference_scores` is None without references or without its packages."""

    answers: int
    characters: float  # mean per answer
    truncated: int  # truncated answers
    citing: int  # answers that cite a statute
    same_citation: int | None  # answers that cite a statute of their reference; None without references
    likeness: ReferenceScores | None


@dataclass(frozen=True)
class ValidationLosses:
    """Losses of an adapter and its base model on the run's validation rows. `difference` is None for a single row."""

    rows: int
    base: LossSum
    tuned: LossSum
    difference: LossDifference | None


@dataclass(frozen=True)
class ModelResult:
    """Result of one model. `losses` is None for the base model, and if the validation rows are not available."""

    name: str
    answers: list[Answer]
    stats: AnswerStats
    losses: ValidationLosses | None = None


@dataclass(frozen=True)
class Comparison:
    """Results of a base model and of the adapters for it.

    `setting` is device, precision and quantization. `source` names the origin of the questions. `notes` are warnings.
    """

    base_model: str
    setting: str
    source: str
    sampling: Sampling
    questions: list[Question]
    base: ModelResult
    tuned: list[ModelResult]
    notes: list[str]

    @property
    def results(self) -> list[ModelResult]:
        """The results of all models, the base model first."""
        return [self.base, *self.tuned]


@dataclass(frozen=True)
class ModelUnderTest:
    """An adapter to compare. `open` loads the base model with the adapter.

    `validation_rows` are the validation rows of the adapter's run, None if they are not available.
    """

    name: str
    open: Callable[[], Engine]
    tokenizer: ChatTokens
    date_string: str
    system_prompt: str | None
    validation_rows: ValidationRows | None
    positions: Positions | None = None

    def prompts(self, questions: Sequence[Question]) -> list[list[int]]:
        """Return the token IDs of `questions`. Raise ModelError for one that is too long for the model."""
        prompts = [self.tokenizer.prompt_ids(q.turns, self.date_string, self.system_prompt) for q in questions]
        for question, prompt in zip(questions, prompts, strict=True):
            check_room(prompt, question.text, hard_limit(self.positions))
        return prompts


def compare_models(
    contestants: Sequence[ModelUnderTest], questions: Sequence[Question], sampling: Sampling, say: ProgressCallback
) -> tuple[list[ModelResult], list[str]]:
    """Return the results of the base model and of each contestant, and notes on metrics that are left out.

    One model is loaded at a time. The base model gets the tokenizer, system prompt and date of the first contestant.
    Raise ModelError, before a model is loaded, for a question that is too long for it.
    """
    asked = [contestant.prompts(questions) for contestant in contestants]
    sides: list[tuple[str, list[Answer], ValidationLosses | None]] = []
    base_losses: dict[str, Float64] = {}  # key: digest of the validation rows
    for left, contestant, prompts in zip(range(len(contestants) - 1, -1, -1), contestants, asked, strict=True):
        engine = contestant.open()
        if not sides:
            engine.set_adapter(False)
            tell = _answer_progress(say, _("base model"), left + 1)
            sides.append((_("base model"), _answers(engine, contestant, prompts, sampling, tell), None))
        losses = _losses(engine, contestant, base_losses, say)
        engine.set_adapter(True)
        answers = _answers(engine, contestant, prompts, sampling, _answer_progress(say, contestant.name, left))
        sides.append((contestant.name, answers, losses))
        del engine  # free its memory before the next engine is loaded
    references = [question.reference for question in questions]
    notes = _position_notes(contestants[0].positions, asked, [answers for _name, answers, _losses in sides], sampling)
    return [ModelResult(name, a, answer_stats(a, references, notes), losses) for name, a, losses in sides], notes


def _answer_progress(say: ProgressCallback, name: str, sides: int) -> Callable[[int, int], None]:
    """Return a callback that reports the finished answers and the estimated time left.

    The time left includes the answers of `sides` more models.
    """
    began = time.monotonic()

    def tell(done: int, total: int) -> None:
        told = _("Answers, {name}: {count}/{total}").format(name=name, count=done, total=total)
        if done and (more := total - done + sides * total):
            left = seconds_text((time.monotonic() - began) / done * more)
            told = phrases([told, _("about {left} left").format(left=left)])
        say(told)

    return tell


def _answers(
    engine: Engine,
    contestant: ModelUnderTest,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    tell: Callable[[int, int], None],
) -> list[Answer]:
    tokenizer = contestant.tokenizer
    sampling = replace(sampling, stop_ids=tokenizer.stop_ids, max_tokens=hard_limit(contestant.positions))
    answers: dict[int, Answer] = {}
    tell(0, len(prompts))
    for done in engine.answers(prompts, sampling):
        for place, ids in done.items():
            text = "".join(text_pieces(ids, tokenizer.decode)).strip()
            answers[place] = Answer(text, len(ids), len(ids) >= sampling.new_tokens(len(prompts[place])))
        tell(len(answers), len(prompts))
    return [answers[place] for place in range(len(prompts))]


def _position_notes(
    positions: Positions | None, asked: list[list[list[int]]], sides: list[list[Answer]], sampling: Sampling
) -> list[str]:
    """Return notes on answers that the model's positions end, or that exceed those it was trained for.

    `asked` holds the prompts of each contestant. `sides` holds the answers of the base model, then of each contestant.
    """
    if positions is None:
        return []
    lengths = [
        (len(prompt), answer)
        for prompts, answers in zip([asked[0], *asked], sides, strict=True)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    if positions.kind == "rope":
        beyond = any(tokens + answer.tokens > positions.limit for tokens, answer in lengths)
        return [beyond_note(positions.limit)] if beyond else []
    ended = sum(a.truncated and a.tokens < sampling.max_new_tokens for _tokens, a in lengths)
    text = _("Answers that end at the last position of the model ({limit} tokens with the question): {count}")
    return [text.format(limit=positions.limit, count=ended)] if ended else []


def _losses(
    engine: Engine, contestant: ModelUnderTest, base_losses: dict[str, Float64], say: ProgressCallback
) -> ValidationLosses | None:
    """Return the losses on the contestant's validation rows. `base_losses` caches those of the base model."""
    if contestant.validation_rows is None:
        return None
    samples, key = list(contestant.validation_rows.samples), contestant.validation_rows.digest
    if key not in base_losses:
        engine.set_adapter(False)
        base_losses[key] = sample_losses(engine, samples, _loss_progress(say, _("base model")))
    engine.set_adapter(True)
    base_S, tuned_S = base_losses[key], sample_losses(engine, samples, _loss_progress(say, contestant.name))
    tokens_S = np.array([sample.num_targets for sample in samples], np.int64)
    total = int(tokens_S.sum())
    sums = LossSum(float(base_S.sum()), total), LossSum(float(tuned_S.sum()), total)
    return ValidationLosses(len(samples), *sums, bootstrap(base_S, tuned_S, tokens_S))


def _loss_progress(say: ProgressCallback, name: str) -> Callable[[int, int], None]:
    def tell(count: int, total: int) -> None:
        say(_("Validation loss, {name}: row {count}/{total} ...").format(name=name, count=count, total=total))

    return tell


def sample_losses(engine: Engine, samples: Sequence[Sample], tell: Callable[[int, int], None]) -> Float64:
    """Return the loss [S] (nats) of each sample, summed over its target tokens.

    Each call evaluates one sample, because an engine returns one sum per call.
    """
    losses = []
    for place, sample in enumerate(samples):
        tell(place + 1, len(samples))
        losses.append(engine.evaluate([pack([sample], [place], [0])]).loss_sum)
    return np.array(losses, np.float64)


def answer_stats(answers: Sequence[Answer], references: Sequence[str | None], notes: list[str]) -> AnswerStats:
    """Return the statistics of `answers`. Add a note to `notes`, once, if a metric cannot be computed."""
    known = [(a.text, r) for a, r in zip(answers, references, strict=True) if r is not None]
    return AnswerStats(
        answers=len(answers),
        characters=float(np.mean([len(answer.text) for answer in answers])),
        truncated=sum(answer.truncated for answer in answers),
        citing=sum(bool(citations(answer.text)) for answer in answers),
        same_citation=sum(bool(citations(text) & citations(reference)) for text, reference in known) if known else None,
        likeness=_likeness(known, notes),
    )


def _likeness(known: list[tuple[str, str]], notes: list[str]) -> ReferenceScores | None:
    if not known:
        return None
    try:
        return reference_scores([text for text, _reference in known], [reference for _text, reference in known])
    except LorafitError as error:
        note = _("chrF and ROUGE-L are not computed: {reason}").format(reason=f"{error.what} {error.fix or ''}".strip())
        if note not in notes:
            notes.append(note)
        return None


# Questions


def questions_from_conversations(conversations: Sequence[Conversation]) -> list[Question]:
    """Return one question per conversation. The last message is the reference answer, the others are the prompt."""
    return [Question(turns[:-1], turns[-1].content) for turns in conversations]


def questions_from_lines(lines: Sequence[str]) -> list[Question]:
    """Return one question per line, without a reference answer."""
    return [Question([Message("user", line)]) for line in lines]


def questions_from_file(path: Path) -> list[Question]:
    """Return the questions and reference answers of a data file (JSON, JSON Lines, CSV ...). Raises DataError."""
    conversations = []
    for row in read_rows(str(path), "train"):
        try:
            conversations.append(to_conversation(row.value))
        except BadRow as bad:
            fix = _("Give rows with a question and an answer, or a text file with one question per line.")
            raise DataError(
                _("A row of the test file has no question with an answer."),
                where=f"{row.file}:{row.line}",
                found=bad.reason,
                fix=fix,
            ) from None
    return questions_from_conversations(conversations)
