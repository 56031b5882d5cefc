"""How will this run go? Config, machine, model and data lengths -> a Plan, each decision with its reason."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorafit.config import TrainConfig, resolve_effective_batch
from lorafit.hardware import Machine
from lorafit.messages import _
from lorafit.modelspec import ModelSpec
from lorafit.plan import fit, numbers
from lorafit.plan.memory import Layout
from lorafit.plan.plan import Choice, Plan
from lorafit.units import bytes_text, count_text

EVAL_SHARE = 0.05  # of the time that scheduled evaluations may take
MOST_EVALS = 20
NO_LIMIT = 4096  # samples in a micro-batch


@dataclass(frozen=True)
class DataFacts:
    """What the planner must know of the data: tokens of each sample, and a digest of all of them."""

    train_lengths: NDArray[np.integer]
    valid_lengths: NDArray[np.integer]
    digest: str


@dataclass(frozen=True)
class Schedule:
    """Steps of a run; `eval_steps` 0: no validation set."""

    steps: int
    warmup_steps: int
    eval_steps: int


def make_plan(config: TrainConfig, machine: Machine, spec: ModelSpec, data: DataFacts) -> Plan:
    """The plan for this run. Raises ConfigError, HardwareError or DoesNotFit."""
    effective_batch = resolve_effective_batch(config)
    schedule = make_schedule(config, effective_batch, data)
    device = numbers.choose_device(config, machine)
    quantization = numbers.choose_quantization(config, device.value)
    optimizer = numbers.choose_optimizer(config, device.value)
    available = fit.available_bytes(machine, device.value)
    base = Layout(
        device=device.value,
        precision="",
        quantization=quantization.value,
        optimizer=optimizer.value,
        lora_r=config.lora_r,
        lora_targets=config.lora_targets,
        tokens=0,
        longest=int(data.train_lengths.max()),
        recompute=0,
        loss_chunk=fit.loss_chunk(spec.vocab),
    )
    chosen = _first_fit(config, machine, spec, base, available)
    precision = numbers.precision_choice(config, device.value, chosen.layout.precision)
    what = [device, quantization, precision, optimizer]
    how = [_memory_choice(machine, chosen, available), *_split_choices(config, spec, chosen)]
    when = _schedule_choices(config, effective_batch, schedule, len(data.train_lengths))
    return _plan(config, data, schedule, chosen, available, [*what, *how, *when])


def make_schedule(config: TrainConfig, effective_batch: int, data: DataFacts) -> Schedule:
    """How many steps, how many of them warm up, and after how many to evaluate."""
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
    """Steps between evaluations, so that they take at most EVAL_SHARE of the time; at most `steps`: the one at the end.

    Going forward through a frozen base costs half of going forward and back.
    """
    affordable = EVAL_SHARE * steps * step_tokens / (valid_tokens / 2)
    return min(math.ceil(steps / max(min(affordable, MOST_EVALS), 1)), steps)


def _first_fit(config: TrainConfig, machine: Machine, spec: ModelSpec, base: Layout, available: int) -> fit.Fit:
    """The first precision that fits. Raises DoesNotFit, unless a token budget was asked for: that is obeyed."""
    attempts = []
    for precision in numbers.precisions(config, machine, base.device):
        layout = Layout(**{**vars(base), "precision": precision})
        attempts.append(fit.best_fit(config, spec, layout, available))
        if attempts[-1].fits:
            return attempts[-1]
    if config.token_budget is None:
        raise fit.does_not_fit(config, spec, attempts[-1], available)
    return attempts[-1]


def _memory_choice(machine: Machine, chosen: fit.Fit, available: int) -> Choice:
    gpu = machine.gpu(chosen.layout.device)
    facts = {"peak": bytes_text(chosen.peak_bytes), "available": bytes_text(available)}
    if not chosen.fits:
        text = _(
            "⚠️  About {peak} are needed, more than may be used of {available}; going on, since --token_budget was given"
        )
    elif chosen.layout.device == "mps" and gpu and gpu.available_bytes is None:
        text = _("✓ About {peak} of {available} (a guess: two thirds of the memory)")
    else:
        text = _("✓ About {peak} of {available}")
    return Choice("memory", facts["peak"], text.format(**facts))


def _split_choices(config: TrainConfig, spec: ModelSpec, chosen: fit.Fit) -> list[Choice]:
    budget, recompute = chosen.token_budget, chosen.layout.recompute
    longest = _("the longest sample has {longest}").format(longest=count_text(chosen.layout.longest))
    asked = _("as asked; {longest}") if config.token_budget else _("the largest useful that fits; {longest}")
    choices = [Choice("token_budget", str(budget), asked.format(longest=longest))]
    if recompute:
        text = _("{layers} of {all} layers compute their activations twice, as asked")
        if config.recompute is None:
            text = _("{layers} of {all} layers compute their activations twice: else they would not fit")
        choices.append(Choice("recompute", str(recompute), text.format(layers=recompute, all=spec.layers)))
    return choices


def _schedule_choices(config: TrainConfig, effective_batch: int, schedule: Schedule, rows: int) -> list[Choice]:
    text = _("{rows} rows, {batch} a step, num_epochs {epochs:g}")
    if config.max_steps:
        text = _("as asked; {rows} rows, {batch} a step")
    reason = text.format(rows=count_text(rows), epochs=config.num_epochs, batch=effective_batch)
    choices = [Choice("steps", str(schedule.steps), reason)]
    if schedule.eval_steps:
        share = _("as asked") if config.eval_steps else _("so that evaluating takes at most {share:.0%} of the time")
        choices.append(Choice("eval_steps", str(schedule.eval_steps), share.format(share=EVAL_SHARE)))
    return choices


def _plan(
    config: TrainConfig, data: DataFacts, schedule: Schedule, chosen: fit.Fit, available: int, choices: list[Choice]
) -> Plan:
    layout = chosen.layout
    return Plan(
        engine="torch",
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
        available_bytes=available,
        choices=choices,
    )
