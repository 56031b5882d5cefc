"""Which way of computing is the fastest that fits? Precision, token budget, recomputed layers and loss chunk, all tried.

Nothing here changes what is learned. Speed is the catalogue's, not what was measured here, so that two equal runs on one
machine take one plan; measured memory (`memory_factor`) may make a budget smaller.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lorafit.config import TrainConfig, resolve_effective_batch
from lorafit.hardware.detect import Machine
from lorafit.models.spec import ModelSpec
from lorafit.planner.data_stats import DataStats, Split, steps_as_shares
from lorafit.planner.fast_path import FAST
from lorafit.planner.memory import Layout, peak_bytes
from lorafit.planner.memory_budget import usable_bytes
from lorafit.planner.speed import MicroBatchShape, step_seconds
from lorafit.planner.throughput import rates
from lorafit.units import MIB

# Few rungs, so that two runs on one machine split their steps alike though free memory differs a little.
LADDER = (256, 512, 1024, 2048, 4096)
USEFUL_TOKENS = {"cpu": 1024, "mps": 2048, "cuda": 4096}  # a larger micro-batch is hardly faster
LOGITS_BYTES = (128 * MIB, 32 * MIB)  # of one chunk of the loss, were all logits of it there at once
NO_LIMIT = 4096  # samples in a micro-batch
WORTH = 0.03  # a plan that is faster by less than this is not worth more memory


@dataclass(frozen=True)
class PlanRequest:
    """What is to be trained where. `base` says what is settled; `memory_factor` what measuring has taught, at least 1;
    `most_tokens` above which budget memory ran out."""

    config: TrainConfig
    machine: Machine
    spec: ModelSpec
    data: DataStats
    base: Layout
    precisions: list[str]
    memory_factor: float = 1.0
    most_tokens: int | None = None

    @property
    def room(self) -> int:
        return usable_bytes(self.machine, self.base.device)

    @property
    def is_capped(self) -> bool:
        """Whether a larger budget would be tried, had memory not run out with it."""
        largest = rungs(self.base.device, self.data.longest)[0]
        return self.config.token_budget is None and largest > (self.most_tokens or largest)

    @property
    def max_samples(self) -> int:
        return self.config.batch_size or NO_LIMIT


@dataclass(frozen=True)
class Candidate:
    """One way to train; `seconds` a step, by the catalogue's speeds."""

    layout: Layout
    token_budget: int
    peak_bytes: int
    seconds: float
    fits: bool


def loss_chunk(vocab: int, logits_bytes: int = LOGITS_BYTES[0]) -> int:
    """Target tokens whose logits are made at once."""
    return min(max(logits_bytes // (vocab * 4), 32), 512)


def candidates(question: PlanRequest) -> list[Candidate]:
    """For every precision, budget and chunk the fewest recomputed layers that fit, or all of them where none fits."""
    return [
        _leanest_needed(question, layout, budget, steps)
        for budget in budgets(question)
        for steps in [steps_of(question, budget)]
        for layout in _layouts(question, budget)
    ]


def best(found: list[Candidate]) -> Candidate:
    """The fastest that fits, of equally fast ones the leanest; where nothing fits, the leanest of all."""
    fitting = [candidate for candidate in found if candidate.fits]
    if not fitting:
        return min(found, key=lambda candidate: candidate.peak_bytes)
    precision = fitting[0].layout.precision  # they come in the order in which they are wanted
    fitting = [candidate for candidate in fitting if candidate.layout.precision == precision]
    fastest = min(candidate.seconds for candidate in fitting)
    return min((c for c in fitting if c.seconds <= fastest * (1 + WORTH)), key=lambda candidate: candidate.peak_bytes)


def anything_fits(question: PlanRequest) -> bool:
    """Whether any of the candidates would fit; how fast they are is not asked for."""
    layers, asked = question.spec.layers, question.config.recompute
    ways = (0, _most_recomputed(question)) if asked is None else (min(asked, layers),)
    return any(
        _peak(question, replace(layout, recompute=recompute)) <= question.room
        for budget in budgets(question)
        for layout in _layouts(question, budget)
        for recompute in ways
    )


def budgets(question: PlanRequest) -> list[int]:
    """The token budgets that are tried, the largest first."""
    config = question.config
    if config.token_budget:
        return [config.token_budget]
    found = rungs(question.base.device, question.data.longest)
    return [rung for rung in found if rung <= (question.most_tokens or rung)] or found[-1:]


def steps_of(question: PlanRequest, budget: int) -> list[list[MicroBatchShape]]:
    """Micro-batches of some steps under `budget`."""
    config = question.config
    how = Split(resolve_effective_batch(config), budget, question.max_samples, question.base.processes)
    return steps_as_shares(question.data, how, config.seed)


def rungs(device: str, longest: int) -> list[int]:
    """From the largest useful one down to the longest sample: it is never split, so less would save nothing."""
    useful = [rung for rung in reversed(LADDER) if longest <= rung <= USEFUL_TOKENS[device]]
    return useful or [next((rung for rung in LADDER if rung >= longest), longest)]


def _layouts(question: PlanRequest, budget: int) -> Iterator[Layout]:
    tokens = _largest_micro_batch(question, budget)
    chunks = dict.fromkeys(loss_chunk(question.spec.vocab, size) for size in LOGITS_BYTES)
    for precision in question.precisions:
        for chunk in chunks:
            yield replace(question.base, precision=precision, tokens=tokens, loss_chunk=chunk)


def _largest_micro_batch(question: PlanRequest, budget: int) -> int:
    """Tokens that a micro-batch can really come to; what its samples share counts once."""
    own, held = question.data.longest - question.data.shared, question.data.held
    samples, processes = resolve_effective_batch(question.config), question.base.processes
    # Dealt longest first, no process comes to more than an even share and the rest of one sample.
    most = min(question.config.batch_size or budget, samples) * own
    most = min(most, (samples + processes - 1) * own // processes)
    return held + max(own, min(budget - held, most))


def _leanest_needed(
    question: PlanRequest, layout: Layout, budget: int, steps: list[list[MicroBatchShape]]
) -> Candidate:
    layers, asked = question.spec.layers, question.config.recompute
    if asked is not None:
        return judged(question, replace(layout, recompute=min(asked, layers)), budget, steps)
    low, high = 0, _most_recomputed(question)  # each recomputed layer saves memory: halve until the first that fits
    while low < high:
        middle = (low + high) // 2
        if _peak(question, replace(layout, recompute=middle)) <= question.room:
            high = middle
        else:
            low = middle + 1
    return judged(question, replace(layout, recompute=low), budget, steps)


def _most_recomputed(question: PlanRequest) -> int:
    """Layers that save memory by recomputing. On the own decoder not the last one: it goes backward first, and keeps less
    than it would make again."""
    return question.spec.layers - (question.base.path == FAST)


def judged(
    question: PlanRequest, layout: Layout, budget: int, steps: list[list[MicroBatchShape]] | None = None
) -> Candidate:  # fmt: skip
    """What `layout` would take; `steps` as steps_of() gives them."""
    steps = steps or steps_of(question, budget)
    peak, rate = _peak(question, layout), rates(question.machine, layout)
    seconds = sum(step_seconds(question.spec, layout, rate, shares) for shares in steps) / len(steps)
    return Candidate(layout, budget, peak, seconds, peak <= question.room)


def _peak(question: PlanRequest, layout: Layout) -> int:
    return int(peak_bytes(question.spec, layout) * question.memory_factor)
