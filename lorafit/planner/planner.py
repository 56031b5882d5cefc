"""The planner: config, machine, model and data statistics -> a `Plan`, with the reason of each decision."""

import math
from dataclasses import dataclass, replace

from lorafit.config import TrainConfig
from lorafit.hardware.detect import Machine
from lorafit.models.spec import ModelSpec
from lorafit.planner import device_precision, prequantized, reasons, sharding, suggestions, tuning
from lorafit.planner.calibrate import NO_CALIBRATION, Calibration
from lorafit.planner.coverage import adapter_choices, with_experts
from lorafit.planner.data_stats import DataStats, target_share
from lorafit.planner.effective_batch import resolve_effective_batch
from lorafit.planner.estimate import Estimate, RunShape, Schedule, estimate
from lorafit.planner.fast_path import FAST, path_of
from lorafit.planner.kernels import kernel_choices
from lorafit.planner.memory import Layout, terms
from lorafit.planner.memory_budget import available_bytes
from lorafit.planner.mlx_types import supported_engine
from lorafit.planner.plan import Choice, Plan
from lorafit.planner.search import (
    NO_LIMIT,
    Candidate,
    PlanRequest,
    best_candidate,
    candidates,
    evaluate_layout,
    loss_chunk,
)

__all__ = ["DataStats", "PlanResult", "Schedule", "make_plan", "make_plan_result", "make_schedule"]

EVAL_SHARE = 0.05  # highest share of the training time for scheduled evaluations
MAX_EVALS = 20


@dataclass(frozen=True)
class PlanResult:
    """A plan with its inputs and its alternatives.

    `plan_request`: the request that `plan` answers. `considered`: all candidates of the search. `chosen`: the selected one,
    with the allocator of the plan. `estimate`: time of the run described by `work`.
    """

    plan: Plan
    plan_request: PlanRequest
    chosen: Candidate
    considered: list[Candidate]
    estimate: Estimate
    work: RunShape


def make_plan(
    config: TrainConfig, machine: Machine, spec: ModelSpec, data: DataStats, known: Calibration = NO_CALIBRATION
) -> Plan:  # fmt: skip
    """Return the plan for a run. Raise ConfigError, HardwareError, ModelError or DoesNotFit."""
    return make_plan_result(config, machine, spec, data, known).plan


def make_plan_result(
    config: TrainConfig, machine: Machine, spec: ModelSpec, data: DataStats, known: Calibration = NO_CALIBRATION
) -> PlanResult:
    """Return the plan with all candidates. Raise ConfigError, HardwareError, ModelError or DoesNotFit.

    If nothing fits, sharding over the processes is tried first, then 4-bit base weights where quantization is "auto". A
    requested token_budget is planned even if it does not fit.
    """
    device = device_precision.choose_device(config, machine)
    engine = supported_engine(config, device_precision.choose_engine(config, machine, device.value), spec)
    quantization = device_precision.choose_quantization(config, device.value, engine.value)
    if spec.packed is not None:
        engine = prequantized.choose_engine(config, machine, device.value, engine, spec.packed)
        quantization = prequantized.choose_quantization(config, spec.packed)
    optimizer = device_precision.choose_optimizer(config, device.value, engine.value)
    base = _base(config, spec, data, engine.value, device.value, quantization.value, optimizer.value)
    question = _asked(config, machine, spec, data, base, known)
    found = candidates(question)
    if sharding.can_shard(config, quantization.value) and (config.shard == "on" or not best_candidate(found).fits):
        shared = replace(question, base=sharding.sharded_layout(question.base, config))
        if best_candidate(tried := candidates(shared)).fits or config.shard == "on":
            question, found = shared, tried
    in_4bit: Candidate | None = None
    if not best_candidate(found).fits and config.quantization == "auto" and quantization.value == "none":
        packed = _asked(config, machine, spec, data, replace(base, quantization="4bit"), known)
        if (in_4bit := best_candidate(tried := candidates(packed))).fits:
            question, found, quantization = packed, tried, device_precision.only_4bit_fits(engine.value)
    chosen = best_candidate(found)
    if not chosen.fits and config.token_budget is None:
        raise suggestions.does_not_fit(question, chosen, in_4bit)
    chosen, tuned = _with_allocator(question, chosen)
    effective_batch = resolve_effective_batch(config)
    schedule = make_schedule(config, effective_batch, data)
    work = RunShape(spec, question.data, schedule, effective_batch, question.max_samples, config.seed)
    expected = estimate(work, chosen.layout, chosen.token_budget, machine, known)
    precision = device_precision.precision_choice(config, device.value, chosen.layout.precision, engine.value)
    packed_choice = with_experts(quantization, spec)
    what = [device, *device_precision.old_gpu(machine, device.value), engine, packed_choice, precision, optimizer]
    what += adapter_choices(spec, config.lora_r, config.lora_targets)
    what += kernel_choices(spec, machine, device.value)
    how = reasons.computation_choices(question, chosen, expected)
    how += sharding.choices(config, chosen.layout, chosen.peak_bytes, machine)
    if engine.value == "torch" and (chosen.layout.path != FAST or config.compile != "auto"):
        tuned.append(tuning.choose_compile(config, device.value, chosen.layout.path, expected.total))
    how += tuned
    choices = [*what, *how, *_schedule_choices(config, effective_batch, schedule, len(data.train_lengths))]
    plan = _plan(question, schedule, chosen, expected, choices)
    values = {choice.setting: choice.value for choice in tuned}
    plan = replace(plan, allocator=values.get("allocator", "default"), compile=values.get("compile", "off"))
    return PlanResult(plan, question, chosen, found, expected, work)


def _with_allocator(question: PlanRequest, chosen: Candidate) -> tuple[Candidate, list[Choice]]:
    """Return `chosen` with the allocator that suits its peak memory. MLX has its own allocator and is unchanged."""
    layout, config, machine = chosen.layout, question.config, question.machine
    if layout.engine != "torch":
        return chosen, []
    ample = evaluate_layout(question, replace(layout, allocator="fast"), chosen.token_budget)
    room = available_bytes(machine, layout.device)
    choice = tuning.choose_allocator(config, machine, layout.device, ample.peak_bytes, room)
    suited = evaluate_layout(question, replace(layout, allocator=choice.value), chosen.token_budget)
    return replace(suited, seconds=chosen.seconds), [choice]  # the search's time, comparable with the others


def alternatives(planned: PlanResult, known: Calibration = NO_CALIBRATION) -> list[Choice]:
    """Return the rejected candidates with reasons, and proposals that a user must request.

    Proposals are 4-bit base weights, if they fit, and one process on each GPU.
    """
    question, chosen = planned.plan_request, planned.chosen
    found = reasons.rejected_choices(question, chosen, planned.considered)
    config, base = question.config, question.base
    if config.quantization == "auto" and base.quantization == "none" and (base.device == "cpu" or base.engine == "mlx"):
        base = replace(base, quantization="4bit")
        packed = best_candidate(candidates(_asked(config, question.machine, question.spec, question.data, base, known)))
        if packed.fits:
            found.append(reasons.quantization_proposal(question, chosen, packed))
    gpus = sum(gpu.kind == question.base.device for gpu in question.machine.gpus)
    if gpus > 1 and question.base.processes == 1:
        several = replace(question, base=replace(question.base, processes=gpus))
        found.append(reasons.more_gpus(chosen, best_candidate(candidates(several))))
    return found


def _base(
    config: TrainConfig, spec: ModelSpec, data: DataStats, engine: str, device: str, quantization: str, optimizer: str
) -> Layout:  # fmt: skip
    return Layout(
        device=device,
        precision="",
        quantization=quantization,
        optimizer=optimizer,
        lora_r=config.lora_r,
        lora_targets=config.lora_targets,
        tokens=0,
        longest=data.longest,
        recompute=0,
        loss_chunk=loss_chunk(spec.vocab),
        engine=engine,
        target_share=data.target_share,
        allocator="lean" if config.allocator == "auto" else config.allocator,
        processes=config.processes or 1,
    )


def _asked(
    config: TrainConfig, machine: Machine, spec: ModelSpec, data: DataStats, base: Layout, known: Calibration
) -> PlanRequest:  # fmt: skip
    """Return the request for `base`: code path, precisions, and the memory measurements of earlier runs."""
    path = path_of(spec, base.longest, base.quantization, base.device)
    precisions = device_precision.precisions(config, machine, base.device, base.engine)
    if path != FAST or spec.window is not None or config.lora_dropout > 0:  # the engine shares no prefixes
        data = data.without_shared_prefixes
    base = replace(base, path=path, precision=precisions[0], target_share=target_share(data))
    factor = known.memory_factor(base, spec)
    ceiling = known.token_ceiling(base, spec, available_bytes(machine, base.device))
    return PlanRequest(config, machine, spec, data, base, precisions, factor, ceiling)


def make_schedule(config: TrainConfig, effective_batch: int, data: DataStats) -> Schedule:
    """Return the number of steps and of warmup steps, and the steps between evaluations."""
    rows = len(data.train_lengths)
    steps = config.max_steps or math.ceil(rows * config.num_epochs / effective_batch)
    warmup = min(math.ceil(config.warmup_ratio * steps), steps - 1)
    if len(data.valid_lengths) == 0:
        return Schedule(steps, warmup, 0)
    step_tokens = float(data.train_lengths.mean()) * effective_batch
    return Schedule(
        steps, warmup, config.eval_steps or _eval_interval(steps, step_tokens, int(data.valid_lengths.sum()))
    )


def _eval_interval(steps: int, step_tokens: float, valid_tokens: int) -> int:
    """Return the steps between evaluations: at most EVAL_SHARE of the time and at most MAX_EVALS evaluations.

    The result is at most `steps`, which means one evaluation at the end. With a frozen base, a forward pass costs half of
    a forward and backward pass.
    """
    affordable = EVAL_SHARE * steps * step_tokens / (valid_tokens / 2)
    return min(math.ceil(steps / max(min(affordable, MAX_EVALS), 1)), steps)


def _schedule_choices(config: TrainConfig, effective_batch: int, schedule: Schedule, rows: int) -> list[Choice]:
    choices = [reasons.steps(config, effective_batch, schedule, rows)]
    if schedule.eval_steps:
        choices.append(reasons.evaluations(config, schedule, EVAL_SHARE))
    return choices


def _plan(
    question: PlanRequest, schedule: Schedule, chosen: Candidate, expected: Estimate, choices: list[Choice]
) -> Plan:  # fmt: skip
    layout, config, data = chosen.layout, question.config, question.data
    return Plan(
        engine=layout.engine,
        device=layout.device,
        precision=layout.precision,
        quantization=layout.quantization,
        optimizer=layout.optimizer,
        steps=schedule.steps,
        effective_batch=resolve_effective_batch(config),
        train_samples=len(data.train_lengths),
        valid_samples=len(data.valid_lengths),
        num_epochs=config.num_epochs,
        seed=config.seed,
        learning_rate=config.learning_rate,
        lr_scheduler=config.lr_scheduler,
        warmup_steps=schedule.warmup_steps,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        adam_epsilon=config.adam_epsilon,
        max_grad_norm=config.max_grad_norm,
        lora_r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        lora_targets=config.lora_targets,
        data_digest=data.digest,
        token_budget=chosen.token_budget,
        max_micro_batch=config.batch_size or NO_LIMIT,
        recompute=layout.recompute,
        loss_chunk=layout.loss_chunk,
        save_steps=config.save_steps or 0,
        eval_steps=schedule.eval_steps,
        keep_checkpoints=config.keep_checkpoints,
        predicted_peak_bytes=chosen.peak_bytes,
        available_bytes=available_bytes(question.machine, layout.device),
        processes=config.processes or 1,
        shard=layout.shards > 1,
        choices=choices,
        predicted_seconds=expected.total,
        predicted_step_seconds=expected.step,
        predicted_range=(expected.low, expected.high),
        predicted_tokens_per_second=expected.tokens_per_second,
        memory_terms=terms(question.spec, layout),
    )
