"""Search for the fastest layout that fits: every precision, token budget, recompute depth and loss chunk is tried.

Token budget, recompute and loss chunk do not change the result of training. Speeds are from the catalogue, not measured,
so that two equal runs on one machine get the same plan. Measured memory (`memory_factor`) may reduce the token budget.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lorafit.config import TrainConfig
from lorafit.hardware.detect import Machine
from lorafit.models.spec import ModelSpec
from lorafit.planner.data_stats import DataStats, Split, training_shapes
from lorafit.planner.effective_batch import resolve_effective_batch
from lorafit.planner.fast_path import FAST, can_recompute
from lorafit.planner.memory import Layout, peak_bytes
from lorafit.planner.memory_budget import usable_bytes
from lorafit.planner.speed import MicroBatchShape, step_seconds
from lorafit.planner.throughput import rates
from lorafit.units import MIB

# Few token budgets, so that small differences in free memory do not change how a step is split into micro-batches.
LADDER = (256, 512, 1024, 2048, 4096)
USEFUL_TOKENS = {"cpu": 1024, "mps": 2048, "cuda": 4096}  # a larger micro-batch is hardly faster on the device
LOGITS_BYTES = (128 * MIB, 32 * MIB)  # size of one chunk's logits, if all existed at once in fp32
NO_LIMIT = 4096  # samples per micro-batch where the config sets no limit
WORTHWHILE_SPEEDUP = 0.03  # relative: a plan that is faster by less is not worth more memory


@dataclass(frozen=True)
class PlanRequest:
    """One search: what to train on which machine, with which settings fixed.

    `base`: layout whose other fields are fixed. `precisions`: the precisions to try, the preferred one first.
    `memory_factor`: measured over predicted peak memory, at least 1. `max_token_budget`: largest token budget to try, since
    larger ones ran out of memory; None: no limit.
    """

    config: TrainConfig
    machine: Machine
    spec: ModelSpec
    data: DataStats
    base: Layout
    precisions: list[str]
    memory_factor: float = 1.0
    max_token_budget: int | None = None

    @property
    def max_bytes(self) -> int:
        """Bytes that the plan may use on the device."""
        return usable_bytes(self.machine, self.base.device)

    @property
    def is_capped(self) -> bool:
        """Whether `max_token_budget` excludes a token budget that the search would try otherwise."""
        largest = budget_ladder(self.base.device, self.data.longest)[0]
        return self.config.token_budget is None and largest > (self.max_token_budget or largest)

    @property
    def max_samples(self) -> int:
        """Most samples per micro-batch."""
        return self.config.batch_size or NO_LIMIT


@dataclass(frozen=True)
class Candidate:
    """One way to train, with its predicted peak memory and its seconds per step by the catalogue's speeds."""

    layout: Layout
    token_budget: int
    peak_bytes: int
    seconds: float
    fits: bool


def loss_chunk(vocab: int, logits_bytes: int = LOGITS_BYTES[0]) -> int:
    """Return how many tokens in the loss have their logits computed at once: between 32 and 512."""
    return min(max(logits_bytes // (vocab * 4), 32), 512)


def candidates(question: PlanRequest) -> list[Candidate]:
    """Return one candidate per token budget, precision and loss chunk.

    Each has the fewest recomputed layers that fit, or the largest number if none fits.
    """
    return [
        _leanest_needed(question, layout, budget, steps)
        for budget in budgets(question)
        for steps in [step_shapes(question, budget)]
        for layout in _layouts(question, budget)
    ]


def best_candidate(found: list[Candidate]) -> Candidate:
    """Return the fastest candidate that fits; if none fits, the one with the lowest peak memory.

    Candidates within WORTHWHILE_SPEEDUP of the fastest count as equally fast, and the one with the lowest peak memory wins.
    """
    fitting = [candidate for candidate in found if candidate.fits]
    if not fitting:
        return min(found, key=lambda candidate: candidate.peak_bytes)
    precision = fitting[0].layout.precision  # candidates are sorted by token budget, then by preferred precision
    fitting = [candidate for candidate in fitting if candidate.layout.precision == precision]
    fastest = min(candidate.seconds for candidate in fitting)
    return min(
        (c for c in fitting if c.seconds <= fastest * (1 + WORTHWHILE_SPEEDUP)),
        key=lambda candidate: candidate.peak_bytes,
    )


def anything_fits(question: PlanRequest) -> bool:
    """Return whether any candidate fits, without estimating speeds."""
    return smallest_peak(question) <= question.max_bytes


def smallest_peak(question: PlanRequest) -> int:
    """Return the lowest peak memory in bytes of all candidates, without estimating speeds."""
    layers, asked = question.spec.layers, question.config.recompute
    ways = (0, _most_recomputed(question)) if asked is None else (min(asked, layers),)
    return min(
        _peak(question, replace(layout, recompute=recompute))
        for budget in budgets(question)
        for layout in _layouts(question, budget)
        for recompute in ways
    )


def budgets(question: PlanRequest) -> list[int]:
    """Return the token budgets to try, the largest first: the requested one, or those up to `max_token_budget`."""
    config = question.config
    if config.token_budget:
        return [config.token_budget]
    found = budget_ladder(question.base.device, question.data.longest)
    return [rung for rung in found if rung <= (question.max_token_budget or rung)] or found[-1:]


def step_shapes(question: PlanRequest, budget: int) -> list[list[MicroBatchShape]]:
    """Return the micro-batch shapes of the first steps of the run under `budget`."""
    config = question.config
    how = Split(resolve_effective_batch(config), budget, question.max_samples, question.base.processes)
    return training_shapes(question.data, how, config.seed)


def budget_ladder(device: str, longest: int) -> list[int]:
    """Return the token budgets for a device, the largest first.

    The largest is the largest useful one, the smallest is not below the longest sample: a sample is never split, so a
    smaller budget saves no memory.
    """
    useful = [rung for rung in reversed(LADDER) if longest <= rung <= USEFUL_TOKENS[device]]
    return useful or [next((rung for rung in LADDER if rung >= longest), longest)]


def _layouts(question: PlanRequest, budget: int) -> Iterator[Layout]:
    tokens = _largest_micro_batch(question, budget)
    chunks = dict.fromkeys(loss_chunk(question.spec.vocab, size) for size in LOGITS_BYTES)
    for precision in question.precisions:
        for chunk in chunks:
            yield replace(question.base, precision=precision, tokens=tokens, loss_chunk=chunk)


def _largest_micro_batch(question: PlanRequest, budget: int) -> int:
    """Return the most tokens that a micro-batch can have under `budget`; shared prefixes count once."""
    own, held = question.data.longest - question.data.shared_tokens, question.data.resident_prefix_tokens
    samples, processes = resolve_effective_batch(question.config), question.base.processes
    # Samples are dealt longest first, so no process exceeds an even share by more than part of one sample.
    most = min(question.config.batch_size or budget, samples) * own
    most = min(most, (samples + processes - 1) * own // processes)
    return held + max(own, min(budget - held, most))


def _leanest_needed(
    question: PlanRequest, layout: Layout, budget: int, steps: list[list[MicroBatchShape]]
) -> Candidate:
    layers, asked = question.spec.layers, question.config.recompute
    if asked is not None:
        return evaluate_layout(question, replace(layout, recompute=min(asked, layers)), budget, steps)
    low, high = 0, _most_recomputed(question)  # binary search: each recomputed layer saves memory
    while low < high:
        middle = (low + high) // 2
        if _peak(question, replace(layout, recompute=middle)) <= question.max_bytes:
            high = middle
        else:
            low = middle + 1
    return evaluate_layout(question, replace(layout, recompute=low), budget, steps)


def _most_recomputed(question: PlanRequest) -> int:
    """Return how many layers save memory by recomputing.

    On the fast path, the last layer does not: its backward runs first, and it keeps less than it would recompute.
    """
    if not can_recompute(question.spec, question.base.engine):
        return 0
    return question.spec.layers - (question.base.path == FAST)


def evaluate_layout(
    question: PlanRequest, layout: Layout, budget: int, steps: list[list[MicroBatchShape]] | None = None
) -> Candidate:  # fmt: skip
    """Return `layout` as a candidate with its predicted memory and time; `steps` are those of step_shapes()."""
    steps = steps or step_shapes(question, budget)
    peak, rate = _peak(question, layout), rates(question.machine, layout)
    seconds = sum(step_seconds(question.spec, layout, rate, shares) for shares in steps) / len(steps)
    return Candidate(layout, budget, peak, seconds, peak <= question.max_bytes)


def _peak(question: PlanRequest, layout: Layout) -> int:
    return int(peak_bytes(question.spec, layout) * question.memory_factor)
