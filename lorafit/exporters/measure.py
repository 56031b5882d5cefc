"""An export beside the base with the live adapter: next-token distributions, losses and greedy answers on the same texts.

The live side is computed in float32 by an engine of lorafit, the export by the program that it is for.
Letters: P positions, T target tokens, V vocabulary.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lorafit import registry
from lorafit.engines.base import Setup
from lorafit.errors import ExportError, LorafitError
from lorafit.exporters.base import ExportSource
from lorafit.exporters.certificate import Behaviour, Ends, Form, Greedy
from lorafit.exporters.kept import losses
from lorafit.exporters.products import Product, live_products
from lorafit.exporters.texts import ProbeText, probe_conversations, rows_of
from lorafit.messages import _
from lorafit.progress import ProgressCallback
from lorafit.sampling import Sampling

LEAST_LOG_P = -12.0  # less likely tokens do not count for the largest difference
NOTHING = 1e-3  # KL(live || base) in nats, below which the adapter changes nothing
OF_16_BITS = 0.05  # largest KL(live || export) / KL(live || base) of types with 16 bits or more
NONSENSE = 1.0  # KL(live || export) in nats that rounding alone does not reach
MOST_ROUNDING = 0.15  # more of KL(live || base) where the base itself is rounded: half of alpha would give 0.25
PROMPTS, ANSWER_TOKENS = 3, 48  # of greedy answers
LEAST_ENDS = 4


class Runtime(Protocol):
    """A loaded model."""

    def log_probs(self, ids: Sequence[int], positions: Sequence[int]) -> NDArray[np.float32]:
        """Return log-probabilities [P,V] of the token after each of `positions` in `ids`."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], limit: int, stops: frozenset[int]) -> list[list[int]]:
        """Return the greedy answers, each of at most `limit` tokens, with the stop token that ended it if one did."""
        ...


class Answers(NamedTuple):
    """What a model computes on some texts, text by text: log-probabilities [P,V], and the losses of all targets [T].

    `best` are its most likely tokens at all targets [T].
    """

    log_probs: list[NDArray[np.float32]]
    losses: list[NDArray[np.float64]]
    best: list[NDArray[np.int64]]


class EngineModel:
    """A model of an engine, in float32 arithmetic on the CPU."""

    def __init__(self, setup: Setup, engine: str = "torch") -> None:
        self.engine: Any = registry.load(registry.ENGINES[engine]).open(setup)
        self._log_probs: Any = registry.load(registry.LOG_PROBS)

    def log_probs(self, ids: Sequence[int], positions: Sequence[int]) -> NDArray[np.float32]:
        """Return log-probabilities [P,V]."""
        found: NDArray[np.float32] = self._log_probs(self.engine, ids, positions)
        return found

    def generate(self, prompts: Sequence[Sequence[int]], limit: int, stops: frozenset[int]) -> list[list[int]]:
        """Return the greedy answers."""
        found: dict[int, list[int]] = {}
        for answers in self.engine.answers(prompts, Sampling(temperature=0, max_new_tokens=limit)):
            found |= answers
        return [_cut(found[place], stops) for place in range(len(prompts))]


@dataclass(frozen=True)
class Reference:
    """Base and live adapter on the texts of each kind; `rounded` is the live model on a rounded base.

    `prompts` have the live model's greedy `answers`, and `margins` the distance of its two best tokens at each of them.
    """

    texts: dict[str, list[ProbeText]]
    base: dict[str, Answers]
    live: dict[str, Answers]
    rounded: dict[str, Answers]
    prompts: list[list[int]]
    answers: list[list[int]]
    margins: list[list[float]]
    stops: list[int]  # the trained one first
    layers: dict[str, Product]  # of the live model, by module

    @property
    def longest(self) -> int:
        """The tokens of the longest text."""
        texts = [text.ids for rows in self.texts.values() for text in rows]
        return max(*(len(ids) for ids in texts), *(len(prompt) + ANSWER_TOKENS for prompt in self.prompts), 1)


def reference(source: ExportSource, precision: str, rounding: str | None, say: ProgressCallback) -> Reference:
    """Return how base and adapter answer. `precision`: storage of the weights, bf16 or fp32.

    `rounding` is the type, as torch names it, to which the base's own weights are rounded; None: they keep their type.
    """
    texts = rows_of(source, say)
    say(_("Measuring the adapter"))
    setup = Setup(source.base.folder, source.base.name, "cpu", precision, source.quantization, source.trust_remote_code)
    model = EngineModel(setup)
    base = {kind: answers_of(model, rows) for kind, rows in texts.items()}
    model.engine.load_adapter(source.adapter)
    live = {kind: answers_of(model, rows) for kind, rows in texts.items()}
    stops = source.tokenizer.end_ids
    prompts = _prompts(source)
    answers = model.generate(prompts, ANSWER_TOKENS, frozenset(stops))
    margins = [_margins(model, *pair) for pair in zip(prompts, answers, strict=True)]
    rounded, layers = live, live_products(model.engine)
    if rounding is not None:
        registry.load(registry.ROUND_WEIGHTS)(model.engine, rounding)
        rounded = {kind: answers_of(model, rows) for kind, rows in texts.items()}
    del model
    gc.collect()
    return Reference(texts, base, live, rounded, prompts, answers, margins, stops, layers)


def _prompts(source: ExportSource) -> list[list[int]]:
    """Return the prompts of some public texts; none where the template refuses them."""
    asked = [conversation[:1] for conversation in probe_conversations()]
    step = max(len(asked) // PROMPTS, 1)
    with contextlib.suppress(Exception):
        return [source.tokenizer.prompt_ids(turns, source.chat.date_string) for turns in asked[::step][:PROMPTS]]
    return []


def _cut(answer: Sequence[int], stops: frozenset[int]) -> list[int]:
    """Return the answer up to and with its first stop token."""
    end = next((at for at, token in enumerate(answer, 1) if token in stops), len(answer))
    return [int(token) for token in answer[:end]]


def _margins(model: Runtime, prompt: list[int], answer: list[int]) -> list[float]:
    places = list(range(len(prompt) - 1, len(prompt) + len(answer) - 1))
    best = np.sort(model.log_probs([*prompt, *answer], places), -1)[:, -2:] if answer else np.zeros((0, 2))
    return [float(one) for one in best[:, 1] - best[:, 0]]


def answers_of(model: Runtime, texts: list[ProbeText]) -> Answers:
    """Return what `model` computes on `texts`."""
    shown, spent, best = [], [], []
    for text in texts:
        found = model.log_probs(text.ids, text.targets)
        nexts = np.asarray(text.ids)[np.asarray(text.targets) + 1]
        best.append(found.argmax(-1))
        spent.append(-found[np.arange(len(nexts)), nexts].astype(np.float64))
        shown.append(found[np.searchsorted(text.targets, text.shown)].copy())
    return Answers(shown, spent, best)


@dataclass(frozen=True)
class Gate:
    """What decides on a form: the largest accepted ratio, the nats that make a close call, and what to do if refused."""

    most_ratio: float
    tie: float
    fix: str


def measured(
    form: Form,
    reference: Reference,
    runtime: str,
    open_model: Callable[[], AbstractContextManager[Runtime]],
    gate: Gate,
    say: ProgressCallback,
) -> Form:
    """Return `form` with how it answers in `runtime`. The texts of the run, which come first, decide.

    Raises ExportError if it cannot be loaded, answers otherwise, or does not end its answers.
    """
    say(_("Measuring the export"))
    with _loaded(open_model) as model:
        found = {kind: answers_of(model, texts) for kind, texts in reference.texts.items()}
        stops = frozenset(reference.stops)
        answers = model.generate(reference.prompts, ANSWER_TOKENS, stops)
    behaviour = [compare(kind, reference, one) for kind, one in found.items()]
    ends = _ends(reference, found)
    _require_same(behaviour[0], gate)
    _require_end(ends)
    return replace(form, runtime=runtime, behaviour=behaviour, greedy=_greedy(reference, answers, gate.tie), ends=ends,
                   most_ratio=gate.most_ratio)  # fmt: skip


@contextlib.contextmanager
def _loaded(open_model: Callable[[], AbstractContextManager[Runtime]]) -> Iterator[Runtime]:
    try:
        context = open_model()
        model = context.__enter__()
    except LorafitError as error:
        raise ExportError(_("The export cannot be loaded."), found=f"{error.what} {error.found or ''}") from error
    try:
        yield model
    finally:
        context.__exit__(None, None, None)
        del model, context
        gc.collect()


def compare(kind: str, reference: Reference, found: Answers) -> Behaviour:
    """Return the figures of the export's answers `found` on the texts of a kind."""
    live, base, rounded = reference.live[kind], reference.base[kind], reference.rounded[kind]
    both = list(zip(live.log_probs, found.log_probs, strict=True))
    kl_base = _mean_kl(live, base)
    kl_export = _mean_kl(live, found)
    return Behaviour(
        rows=kind,
        texts=len(both),
        positions=sum(len(one) for one, _other in both),
        kl_export=kl_export,
        kl_base=kl_base,
        kl_rounding=_mean_kl(live, rounded),
        ratio=kl_export / kl_base if kl_base >= NOTHING else None,
        largest=max(float(np.abs(one - other)[one > LEAST_LOG_P].max()) for one, other in both),
        top1=float(np.concatenate([one.argmax(-1) == other.argmax(-1) for one, other in both]).mean()),
        losses=losses(base.losses, live.losses, found.losses),
    )


def _greedy(reference: Reference, answers: list[list[int]], tie: float) -> Greedy | None:
    if not answers:
        return None
    equal = close = parted = 0
    for wanted, margins, found in zip(reference.answers, reference.margins, answers, strict=True):
        same = next((at for at, pair in enumerate(zip(wanted, found, strict=False)) if pair[0] != pair[1]), len(wanted))
        equal += same
        parted += same < len(wanted)
        close += same < len(wanted) and margins[same] < tie
    return Greedy(len(answers), sum(map(len, reference.answers)), equal, parted, close, tie)


def _ends(reference: Reference, found: dict[str, Answers]) -> Ends:
    """Return at how many ends of answers in the texts the models choose the end token."""
    places = live = export = 0
    for kind, texts in reference.texts.items():
        for text, ours, theirs in zip(texts, reference.live[kind].best, found[kind].best, strict=True):
            nexts = np.asarray(text.ids)[np.asarray(text.targets) + 1]
            at_end = np.isin(nexts, reference.stops)
            places += int(at_end.sum())
            live += int((at_end & (ours == nexts)).sum())
            export += int((at_end & (ours == nexts) & (theirs == nexts)).sum())
    return Ends(reference.stops[0], places, live, export)


def _require_same(found: Behaviour, gate: Gate) -> None:
    """Raise ExportError if the export answers unlike base and adapter: KL above a part of KL(live || base).

    Where the adapter changes nothing, an export of 16 bits or more may not change more than that either. Rounding of the
    base's own weights, which the user asked for by --dtype, is allowed for.
    """
    limit = gate.most_ratio * found.kl_base + min(2 * found.kl_rounding, MOST_ROUNDING * found.kl_base)
    if found.ratio is None:
        limit = NOTHING if gate.most_ratio <= OF_16_BITS else NONSENSE
    if found.kl_export <= limit:
        return
    text = _("KL(adapter || export) = {export:.2g}, KL(adapter || base) = {base:.2g}, at most {limit:.2g} is accepted")
    raise ExportError(
        _("The export does not answer as the base model with the adapter does."),
        found=text.format(export=found.kl_export, base=found.kl_base, limit=limit),
        fix=gate.fix,
    )


def _require_end(found: Ends | None) -> None:
    """Raise ExportError if the export ends fewer than a quarter of the answers that the live model ends.

    4 bits move an end token from the first to the second place in every third answer or so. Of few answers, that says
    nothing.
    """
    if found is not None and found.live >= LEAST_ENDS and found.live > 4 * found.export:
        raise ExportError(
            _("The answers of the export do not end."),
            found=_("of {count} answers that the adapter ends, the export ends {ended}").format(
                count=found.live, ended=found.export
            ),
            fix=_("Please report it."),
        )


def _mean_kl(live: Answers, other: Answers) -> float:
    """Return the mean of KL(live || other) over all positions."""
    parts = [_kl(one, two) for one, two in zip(live.log_probs, other.log_probs, strict=True)]
    return max(float(np.concatenate(parts).mean()), 0.0)


def _kl(live: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return KL(live || other) of each position [P]."""
    share = np.exp(live, dtype=np.float64)
    found: NDArray[np.float64] = np.multiply(share, live.astype(np.float64) - other, where=share > 0, out=share).sum(-1)
    return found
