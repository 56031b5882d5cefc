"""How long will the whole run take, and how sure is that? Steps, evaluations, saving and loading added up."""

from dataclasses import dataclass

from lorafit.hardware.detect import Machine
from lorafit.models.spec import ModelSpec
from lorafit.planner.calibrate import Calibration
from lorafit.planner.data_stats import LOOKED_AT, DataStats, Split, as_shares, steps_as_shares
from lorafit.planner.memory import Layout
from lorafit.planner.speed import evaluation_seconds, load_seconds, save_seconds, step_seconds
from lorafit.planner.throughput import rates

SAVE_SECONDS = 600.0  # between checkpoints (loop.py)
SAMPLES_LOOKED_AT = 2000  # whose mean length is within 1% to 2% of all samples'
# How far the time may be off, down and up, by what it rests on.
SPREAD = {"measured": (0.9, 1.15), "calibrated": (0.85, 1.2), "catalogue": (0.65, 1.6), "guess": (0.4, 3.0)}


@dataclass(frozen=True)
class Estimate:
    """Seconds of a run: `step` of one update, `total` of all, `low` to `high` its range; `source` what it rests on."""

    step: float
    evaluation: float
    total: float
    low: float
    high: float
    tokens_per_second: float
    source: str


@dataclass(frozen=True)
class Schedule:
    """Steps of a run; `eval_steps` 0: no validation set."""

    steps: int
    warmup_steps: int
    eval_steps: int


@dataclass(frozen=True)
class RunShape:
    """What a run has to do."""

    spec: ModelSpec
    data: DataStats
    schedule: Schedule
    effective_batch: int
    max_samples: int
    seed: int


def estimate(work: RunShape, layout: Layout, token_budget: int, machine: Machine, known: Calibration) -> Estimate:
    """By the catalogue's speeds, corrected by what was measured on this machine before."""
    spec, rate = work.spec, rates(machine, layout, known.core_gflops)
    how = Split(work.effective_batch, token_budget, work.max_samples, layout.processes)
    most = min(work.schedule.steps, max(LOOKED_AT, SAMPLES_LOOKED_AT // work.effective_batch))
    steps = steps_as_shares(work.data, how, work.seed, most)
    step = sum(step_seconds(spec, layout, rate, shares) for shares in steps) / len(steps)
    slowness = known.slowness(layout, spec)
    source = "catalogue" if rate.source == "measured" else rate.source
    if slowness is not None:
        step, source = step * slowness, "calibrated"
    some, times = as_shares(work.data, token_budget)
    valid = times * sum(evaluation_seconds(spec, layout, rate, share) for share in some)
    valid *= (slowness or 1.0) / layout.processes
    tokens = float(work.data.train_lengths.mean()) * work.effective_batch
    return as_estimate(work, layout, step, valid, tokens, source)


def as_estimate(
    work: RunShape, layout: Layout, step: float, evaluation: float, step_tokens: float, source: str
) -> Estimate:
    """The whole run's time from that of a step and of an evaluation, in seconds; what was measured has been loaded."""
    schedule = work.schedule
    evaluations = 0 if schedule.eval_steps == 0 else 1 + -(-schedule.steps // schedule.eval_steps)
    training = schedule.steps * step + evaluations * evaluation
    saves = (1 + training / SAVE_SECONDS) * save_seconds(work.spec, layout)
    loading = 0.0 if source == "measured" else load_seconds(work.spec)
    fixed, (down, up) = loading + saves, SPREAD[source]
    return Estimate(
        step=step,
        evaluation=evaluation,
        total=training + fixed,
        low=training * down + fixed,
        high=training * up + fixed,
        tokens_per_second=step_tokens / step,
        source=source,
    )
