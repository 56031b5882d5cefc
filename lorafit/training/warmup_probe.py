"""The warm-up probe: measured time and memory of a few micro-batches, then of all steps, compared with the plan.

Both measurements correct the predictions. The micro-batches run through `Engine.probe`, which drops the gradients and
changes no state, so training gives the same result with and without the probe.
"""

import statistics
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lorafit.data.batching import Samples, build_step_batch
from lorafit.data.micro_batch import MicroBatch
from lorafit.data.shared_prefix import repeated_prefixes
from lorafit.engines.base import Engine, OutOfMemory
from lorafit.errors import DoesNotFit
from lorafit.events import Event, Finished, Rehearsed, Shrunk, StepDone, Warned
from lorafit.hardware.catalogue.lengths import golden_ratio_points
from lorafit.messages import _
from lorafit.planner import calibrate
from lorafit.planner.calibrate import Calibration
from lorafit.planner.estimate import Estimate, as_estimate, estimate
from lorafit.planner.fast_path import path_of
from lorafit.planner.memory import Layout
from lorafit.planner.plan import Plan
from lorafit.planner.planner import PlanResult, make_plan_result
from lorafit.planner.schedule import step_samples
from lorafit.planner.speed import MicroBatchShape, micro_batch_seconds
from lorafit.planner.throughput import rates

STEPS_LOOKED_AT, LOOKED_AT = 6, 64  # steps and micro-batches, at least, from which the probed ones are chosen
PASSES_SHARE, MAX_PASSES = 0.05, 33  # most passes: as a share of the run's micro-batches, and in all; at least one
MAX_PROBE_SECONDS = 15.0  # of measured passes, after which no more follow; the longest and the median always run
SLOW_RATIO = 1.3  # measured over planned step time, above which the user is warned
SETTLED_STEPS = 20  # steps after which the warning is decided


@dataclass(frozen=True)
class Prediction:
    """A plan with the inputs of its predictions, which measurements correct. `calibration`: those of earlier runs."""

    planned: PlanResult
    calibration: Calibration
    plan: Plan  # the plan in use; a resumed run has its own

    @property
    def layout(self) -> Layout:
        """Return `plan` as a Layout, the input of the planner's formulas."""
        plan, question = self.plan, self.planned.plan_request
        return replace(
            question.base,
            engine=plan.engine,
            device=plan.device,
            precision=plan.precision,
            quantization=plan.quantization,
            optimizer=plan.optimizer,
            path=path_of(question.spec, question.base.longest, plan.quantization, plan.device),
            recompute=plan.recompute,
            loss_chunk=plan.loss_chunk,
            allocator=plan.allocator,
            tokens=max(question.data.longest, min(plan.token_budget, self.planned.chosen.layout.tokens)),
        )

    @property
    def key(self) -> str:
        """Return the key of this layout and model in the calibration file."""
        return calibrate.calibration_key(self.layout, self.planned.plan_request.spec)

    def uncalibrated(self) -> Estimate:
        """Return the estimated time without corrections from earlier runs; the CPU's measured speed is used."""
        grounds = Calibration(self.calibration.core_gflops)
        return estimate(
            self.planned.work, self.layout, self.plan.token_budget, self.planned.plan_request.machine, grounds
        )


def run_probe(engine: Engine, samples: Samples, expected: Prediction) -> Generator[Event, None, Plan]:
    """Measure a few micro-batches, store the result for later plans, and return the corrected plan.

    After out of memory, yield Warned and retry with a smaller token budget or more recomputed layers. At the end yield
    Rehearsed. Raises OutOfMemory if the longest sample does not fit.
    """
    plan = expected.plan
    while True:
        try:
            seconds, slowness, peak = _measure_passes(engine, samples, replace(expected, plan=plan))
            break
        except OutOfMemory:
            plan = _smaller_plan(plan, expected)
            note_ceiling(expected, plan.token_budget)
            engine.release()
            engine.set_recompute(plan.recompute)
            text = _(
                "Out of memory in the preflight check: now {budget} tokens per micro-batch, "
                "recomputed layers: {recompute}."
            )
            yield Warned(text=text.format(budget=plan.token_budget, recompute=plan.recompute))
    memory = None if peak is None else peak / expected.plan.predicted_peak_bytes
    calibrate.save_measurement(
        expected.planned.plan_request.machine, expected.key, slowness * _cpu_share(expected), memory
    )
    plan = _corrected_plan(plan, expected, memory)
    engine.set_recompute(plan.recompute)
    total = _measured_time(replace(expected, plan=plan), slowness)
    yield Rehearsed(
        seconds=seconds,
        peak_bytes=peak,
        predicted_peak_bytes=plan.predicted_peak_bytes,
        tokens_per_second=total.tokens_per_second,
        expected_seconds=total.total,
        low_seconds=total.low,
        high_seconds=total.high,
    )
    return replace(plan, predicted_step_seconds=total.step, predicted_seconds=total.total)


def _cpu_share(expected: Prediction) -> float:
    """Return the share of the CPU (0 to 1) that this process has now, by a timed matmul; 1 on a GPU.

    The measured time is multiplied by the share, because the load of other programs does not last.
    """
    best = expected.calibration.core_gflops
    return min(1.0, calibrate.measure_matmul_gflops() / best) if best and expected.layout.device == "cpu" else 1.0


def note_ceiling(expected: Prediction, token_budget: int | None) -> None:
    """Store `token_budget` as the ceiling for equal runs, after memory ran out above it.

    None: the budget is unchanged, as more layers are recomputed instead; nothing is stored.
    """
    if token_budget is not None:
        machine, available = expected.planned.plan_request.machine, expected.plan.available_bytes
        calibrate.save_ceiling(machine, expected.key, token_budget, available)


def _measure_passes(engine: Engine, samples: Samples, expected: Prediction) -> tuple[float, float, int | None]:
    """Return the measured seconds, the time ratio (measured over predicted) and the peak memory in bytes.

    The ratio is the median over the micro-batches, because the load of other programs comes and goes.
    """
    micros, count = _micro_batches(samples, expected.plan, engine.facts.shares_prefixes)
    longest, median = micros[-1], micros[len(micros) // 2]
    spec, layout = expected.planned.plan_request.spec, expected.layout
    rate = rates(expected.planned.plan_request.machine, layout, expected.calibration.core_gflops)
    most = min(max(1, int(PASSES_SHARE * count)), MAX_PASSES)
    order = [longest, median, longest, *_spread(micros, most)][:most]
    over: list[float] = []
    found, peak = 0.0, None
    for place, micro in enumerate(order):
        probe = engine.probe(micro)
        peak = probe.peak_bytes
        if place or most == 1:  # the first of several is a warm-up: it allocates the memory that the others reuse
            own = computed_shapes(micro, engine.facts.shares_prefixes)
            found += probe.seconds
            over.append(probe.seconds / sum(micro_batch_seconds(spec, layout, rate, share) for share in own))
        if place >= 2 and found > MAX_PROBE_SECONDS:
            break
    return found, statistics.median(over) or 1.0, peak  # the ratio is 0 with an engine that computes nothing


def _spread(micros: Sequence[MicroBatch], count: int) -> list[MicroBatch]:
    """Return `count` of `micros`, spread evenly over them; so are the first few of the result."""
    return [micros[int(place * len(micros))] for place in golden_ratio_points(count + 1)[1:]]


def _micro_batches(samples: Samples, plan: Plan, shares: bool) -> tuple[Sequence[MicroBatch], float]:
    """Return the micro-batches of the first steps, the longest last, and an estimate of the run's number of them."""
    found: list[MicroBatch] = []
    step = 0
    while step < plan.steps and (step < STEPS_LOOKED_AT or len(found) < LOOKED_AT):
        step += 1
        rows = step_samples(plan, step)
        found += build_step_batch(samples, rows, plan.token_budget, plan.max_micro_batch, shares=shares).micro_batches
    return sorted(found, key=lambda micro: micro.num_tokens), len(found) / step * plan.steps


def computed_shapes(micro: MicroBatch, shares: bool) -> list[MicroBatchShape]:
    """Return the shapes that the engine computes for `micro`.

    If the engine `shares` prefixes, a prefix of several samples counts once. The prefixes are then the second shape.
    """
    lengths, begun = np.diff(micro.segments).astype(np.int64), micro.shared_prefix_bytes()
    once = [(len(ids), begun.count(ids.tobytes())) for ids in (repeated_prefixes([micro]) if shares else [])]
    tokens = micro.num_tokens - sum(length * times for length, times in once)
    squares = int((lengths**2).sum()) - sum(length**2 * times for length, times in once)
    own, held = MicroBatchShape(tokens, micro.num_targets, squares), sum(length for length, _times in once)
    return [own, MicroBatchShape(held, 0, sum(length**2 for length, _times in once))] if held else [own]


def _smaller_plan(plan: Plan, expected: Prediction) -> Plan:
    """Return `plan` with half the token budget, at least the longest sample, or else a quarter more layers recomputed.

    Raises OutOfMemory if neither is possible.
    """
    longest, layers = expected.planned.plan_request.data.longest, expected.planned.plan_request.spec.layers
    if plan.token_budget > longest:
        return replace(plan, token_budget=max(plan.token_budget // 2, longest))
    if plan.recompute < layers:
        return replace(plan, recompute=min(layers, plan.recompute + max(1, layers // 4)))
    raise OutOfMemory(
        _("Out of memory on a single sample of {tokens} tokens, which cannot be split.").format(tokens=longest),
        fix=_("Use a smaller `--max_length`, `--quantization 4bit` or a smaller model, or close other programs."),
    )


def _corrected_plan(plan: Plan, expected: Prediction, memory: float | None) -> Plan:
    """Return `plan` with the budget of a plan that uses the measured peak; the budget never grows.

    `memory`: measured over predicted peak; None: not measured.
    """
    question = expected.planned.plan_request
    if question.config.plan is not None or calibrate.round_memory_factor(memory) <= question.memory_factor:
        return plan
    taught = calibrate.load_calibration(question.machine)
    try:
        fresh = make_plan_result(question.config, question.machine, question.spec, question.data, taught).plan
    except DoesNotFit:
        return plan
    if fresh.token_budget >= plan.token_budget and fresh.recompute <= plan.recompute:
        return replace(plan, predicted_peak_bytes=max(plan.predicted_peak_bytes, fresh.predicted_peak_bytes))
    return replace(
        plan,
        token_budget=min(plan.token_budget, fresh.token_budget),
        recompute=max(plan.recompute, fresh.recompute),
        predicted_peak_bytes=fresh.predicted_peak_bytes,
    )


def _measured_time(expected: Prediction, slowness: float) -> Estimate:
    formula, work = expected.uncalibrated(), expected.planned.work
    tokens = formula.tokens_per_second * formula.step
    evaluation = formula.evaluation * slowness
    return as_estimate(work, expected.layout, formula.step * slowness, evaluation, tokens, "measured")


def compare_with_plan(events: Iterator[Event], expected: Prediction, whole: bool) -> Iterator[Event]:
    """Yield `events`; warn if training is much slower than planned; add predicted and measured values to Finished.

    If the `whole` run was trained here, its time ratio and peak are stored for later plans. The time ratio is left out
    if steps took more than SLOW_RATIO times what the probe had measured.
    """
    steps, seconds, peak, said = 0, 0.0, 0, False
    planned, rehearsed = expected.plan.predicted_step_seconds, not expected.planned.plan_request.config.no_preflight
    for event in events:
        if isinstance(event, StepDone):
            steps, seconds, peak = steps + 1, seconds + event.seconds, max(peak, event.peak_bytes or 0)
        if isinstance(event, Shrunk) and event.ran_out:
            note_ceiling(expected, event.token_budget)
        if isinstance(event, Finished) and steps:
            if whole:
                memory = peak / expected.plan.predicted_peak_bytes if peak else None
                disturbed = rehearsed and seconds / steps > SLOW_RATIO * planned
                slowness = None if disturbed else seconds / steps / expected.uncalibrated().step
                calibrate.save_measurement(expected.planned.plan_request.machine, expected.key, slowness, memory)
            event = _with_predictions(event, expected.plan, peak)
        yield event
        if not said and planned and steps == SETTLED_STEPS and seconds / steps > SLOW_RATIO * planned:
            said = True
            text = _(
                "Slower than planned: each step takes {ratio:.1f} times as long. Check whether "
                "another program is using this machine."
            )
            yield Warned(step=event.step, text=text.format(ratio=seconds / steps / planned))


def _with_predictions(event: Finished, plan: Plan, peak: int) -> Finished:
    return replace(
        event,
        predicted_seconds=plan.predicted_step_seconds * plan.steps or None,
        peak_bytes=peak or None,
        predicted_peak_bytes=plan.predicted_peak_bytes or None,
    )
