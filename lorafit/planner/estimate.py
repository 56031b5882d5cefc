"""Time estimate of a whole run, with its range: steps, evaluations, saving and loading."""

from dataclasses import dataclass

from lorafit.hardware.detect import Machine
from lorafit.models.spec import ModelSpec
from lorafit.planner.calibrate import Calibration
from lorafit.planner.data_stats import SAMPLED_STEPS, DataStats, Split, training_shapes, validation_shapes
from lorafit.planner.memory import Layout
from lorafit.planner.plan import SAVE_SECONDS
from lorafit.planner.speed import evaluation_seconds, load_seconds, save_seconds, step_seconds
from lorafit.planner.throughput import rates

SAMPLED_ROWS = 2000  # enough that their mean length is within 1% to 2% of the mean of all samples
# Lower and upper factor on the estimated time, by the source of the speed.
SPREAD = {"measured": (0.9, 1.15), "calibrated": (0.85, 1.2), "catalogue": (0.65, 1.6), "guess": (0.4, 3.0)}


@dataclass(frozen=True)
class Estimate:
    """Seconds of a run.

    `step`: one optimizer step. `evaluation`: one pass over the validation set. `total`: the whole run, between `low` and
    `high`. `source`: a key of SPREAD, where the speed is from.
    """

    step: float
    evaluation: float
    total: float
    low: float
    high: float
    tokens_per_second: float
    source: str


@dataclass(frozen=True)
class Schedule:
    """Steps of a run; `eval_steps`: steps between evaluations, 0 without a validation set."""

    steps: int
    warmup_steps: int
    eval_steps: int


@dataclass(frozen=True)
class RunShape:
    """The work of a run, whatever the layout: model, data, schedule and batch sizes (in samples)."""

    spec: ModelSpec
    data: DataStats
    schedule: Schedule
    effective_batch: int
    max_samples: int
    seed: int


def estimate(work: RunShape, layout: Layout, token_budget: int, machine: Machine, known: Calibration) -> Estimate:
    """Estimate the time of a run from the catalogue's speeds, corrected by earlier measurements on this machine."""
    spec, rate = work.spec, rates(machine, layout, known.core_gflops)
    how = Split(work.effective_batch, token_budget, work.max_samples, layout.processes)
    most = min(work.schedule.steps, max(SAMPLED_STEPS, SAMPLED_ROWS // work.effective_batch))
    steps = training_shapes(work.data, how, work.seed, most)
    step = sum(step_seconds(spec, layout, rate, shares) for shares in steps) / len(steps)
    slowness = known.slowness(layout, spec)
    source = "catalogue" if rate.source == "measured" else rate.source
    if slowness is not None:
        step, source = step * slowness, "calibrated"
    some, times = validation_shapes(work.data, token_budget)
    valid = times * sum(evaluation_seconds(spec, layout, rate, share) for share in some)
    valid *= (slowness or 1.0) / layout.processes
    tokens = float(work.data.train_lengths.mean()) * work.effective_batch
    return as_estimate(work, layout, step, valid, tokens, source)


def as_estimate(
    work: RunShape, layout: Layout, step: float, evaluation: float, step_tokens: float, source: str
) -> Estimate:
    """Extend the seconds of one step and one evaluation to the whole run.

    `step_tokens`: tokens per step. Source "measured" adds no loading time, since the model is loaded already.
    """
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
