"""Tokens per second, peak memory and MFU of lorafit and of peft with transformers' Trainer, and the planner's predictions."""

import gc
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from card import peers
from card.facts import stated_teraflops
from card.settings import Line, OnDevice, Settings, missing, worded
from card.work import Rows, layout_of, model_folder, plan_of, rows_of, shapes_of, spec_of, step_batch
from lorafit.engines.torch.attention import SEGMENT_ATTENTION, VARLEN_ATTENTION
from lorafit.engines.torch.engine import TorchEngine
from lorafit.hardware.detect import detect_machine
from lorafit.models.spec import ModelSpec
from lorafit.planner.memory import peak_bytes, terms
from lorafit.planner.plan import Plan
from lorafit.planner.speed import attention_flops, head_flops, linear_flops, lora_flops, step_seconds
from lorafit.planner.throughput import rates
from peers.protocol import synchronise

WARM_UP, STEPS, TINY_STEPS = 2, 8, 2
MOST_MEMORY = (
    0.6  # share of the device that may be planned without gradient checkpointing; peers need more than lorafit
)
SAME_LOSS = 1e-2  # relative difference of the mean losses of two trainers of the same rows
NO_TENSORS = ("framework", "allocator")  # terms of the memory model that no tensor takes


@dataclass(frozen=True)
class Race:
    """What all contestants train: a model of the architecture `spec` in `folder`, and rows, in `precision`."""

    settings: Settings
    folder: Path
    spec: ModelSpec
    rows: Rows
    precision: str

    @property
    def recompute(self) -> int:
        """Return 0, or all layers where the device is too small for their activations."""
        if self.settings.device != "cuda":
            return 0
        plan = plan_of(self.settings, self.rows, self.precision)
        most = MOST_MEMORY * torch.cuda.get_device_properties(0).total_memory
        fits = (
            peak_bytes(self.spec, layout_of(plan, shapes_of(step_batch(self.rows, plan, 0)), self.rows.longest)) <= most
        )
        return 0 if fits else self.spec.layers

    @property
    def steps(self) -> int:
        """Return how many steps a contestant takes, those that are not timed included."""
        return WARM_UP + (TINY_STEPS if self.settings.tiny else STEPS)


def one_billion(settings: Settings) -> Iterator[Line]:
    """Yield the figures of the shape of Llama-3.2-1B."""
    yield from _of_shape(settings, "llama-3.2-1b")


def three_billion(settings: Settings) -> Iterator[Line]:
    """Yield the figures of the shape of Llama-3.2-3B."""
    yield from _of_shape(settings, "llama-3.2-3b")


def _of_shape(settings: Settings, shape: str) -> Iterator[Line]:
    precision = "bf16" if settings.device == "cuda" else "fp32"
    folder = model_folder(shape, settings.scratch / shape, settings.tiny)
    spec = spec_of(folder)
    for kind in ("legal", "long"):
        rows = rows_of(kind, spec.vocab, settings.tiny)
        for line in _lines(Race(settings, folder, spec, rows, precision)):
            yield {"shape": shape, "rows": kind, "precision": precision, **line}


def _lines(race: Race) -> Iterator[Line]:
    """Yield lorafit's figures, those of each peer, and lorafit's again: a drift of the clock and other bits would show."""
    plan = plan_of(race.settings, race.rows, race.precision, recompute=race.recompute)
    first = {"who": "lorafit", **_guarded(race, plan)}
    yield first
    for name, options in peers.contestants(race.rows):
        line = _peer(race, options)
        if "loss" in line and "loss" in first:
            line["ok"] = abs(line["loss"] / first["loss"] - 1) <= SAME_LOSS
            if not line["ok"]:
                line["error"] = f"another loss: {line['loss']:.4f}, lorafit's is {first['loss']:.4f}"
        yield {"who": name, **line}
    again = {"who": "lorafit, again", **_guarded(race, plan)}
    if "loss" in again and "loss" in first:
        again["same_bits"] = again["loss"] == first["loss"]
    yield again
    if race.settings.device == "cuda":
        yield {"who": "lorafit, attention per segment", **_guarded(race, plan, SEGMENT_ATTENTION)}
    quantized = plan_of(
        race.settings, race.rows, race.precision, recompute=race.recompute, quantization="4bit",
        optimizer="paged_adamw_8bit",
    )  # fmt: skip
    yield {"who": "lorafit, QLoRA", **(missing("bitsandbytes") or _guarded(race, quantized))}


def _guarded(race: Race, plan: Plan, attention: str | None = None) -> Line:
    """Return lorafit's figures, or the error as a line."""
    free(race.settings.device)
    try:
        return _lorafit(race, plan, attention)
    except Exception as error:
        return {"ok": False, "error": worded(error)}
    finally:
        free(race.settings.device)


def _lorafit(race: Race, plan: Plan, attention: str | None) -> Line:
    device = race.settings.device
    engine = OnDevice(device, plan.precision).open(race.folder, plan)
    if attention is not None:
        engine.model.set_attn_implementation(attention)
    seconds, tokens, losses = [], [], []
    for number in range(race.steps):
        batch = step_batch(race.rows, plan, number)
        synchronise(device)
        began = time.perf_counter()
        result = engine.step(number + 1, batch.micro_batches, batch.num_targets, plan.learning_rate)
        synchronise(device)
        took = time.perf_counter() - began
        losses.append(result.loss_sum / batch.num_targets)
        if number >= WARM_UP:
            seconds.append(took)
            tokens.append(batch.num_tokens)
    line = figures(race, seconds, tokens)
    line |= {"attention": _attention(engine), "recompute": plan.recompute, "loss": statistics.fmean(losses)}
    return line | _against_the_plan(race, plan, line)


def _attention(engine: TorchEngine) -> str:
    name = engine.model.config._attn_implementation
    return {SEGMENT_ATTENTION: "per segment", VARLEN_ATTENTION: "varlen kernel"}.get(name, name)


def _against_the_plan(race: Race, plan: Plan, line: Line) -> Line:
    """Return the predicted time and memory beside the measured ones: of tensors, and of all but the CUDA context."""
    batches = [step_batch(race.rows, plan, number) for number in range(WARM_UP, race.steps)]
    shapes = [shapes_of(batch) for batch in batches]
    layout = layout_of(plan, max(shapes, key=lambda one: sum(shape.tokens for shape in one)), race.rows.longest)
    rate = rates(detect_machine(), layout)
    sizes = terms(race.spec, layout)
    tensors = sum(size for name, size in sizes.items() if name not in NO_TENSORS)
    found: Line = {
        "predicted_step_seconds": statistics.median(step_seconds(race.spec, layout, rate, one) for one in shapes),
        "predicted_tensor_bytes": tensors,
        "predicted_reserved_bytes": tensors + sizes["allocator"],
    }
    if line["peak_allocated_bytes"] is not None:
        found["memory_difference_bytes"] = line["peak_allocated_bytes"] - tensors
    return found


def _peer(race: Race, options: Line) -> Line:
    """Return the figures of transformers' Trainer (or TRL's) with these options, or why there are none."""
    if line := missing(*options["needs"]):
        return line
    free(race.settings.device)
    try:
        run = peers.Run(race.folder, race.rows, race.precision, race.settings.device, race.steps, race.recompute > 0)
        seconds, loss = peers.train(run, options)
        tokens = [sum(map(len, race.rows.step(number))) for number in range(WARM_UP, race.steps)]
        return {**figures(race, seconds[WARM_UP:], tokens), "recompute": race.recompute, "loss": loss}
    except Exception as error:
        return {"ok": False, "error": worded(error)}
    finally:
        free(race.settings.device)


def figures(race: Race, seconds: list[float], tokens: list[int]) -> Line:
    """Return tokens per second (median, lowest, highest), the median step, MFU, and the peak memory of the device."""
    speeds = [count / time for count, time in zip(tokens, seconds, strict=True)]
    cuda = race.settings.device == "cuda"
    line: Line = {
        "tokens_per_second": statistics.median(speeds),
        "slowest": min(speeds),
        "fastest": max(speeds),
        "step_seconds": statistics.median(seconds),
        "teraflops": statistics.median(speeds) * _flops_per_token(race) / 1e12,
        "peak_allocated_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "peak_reserved_bytes": torch.cuda.max_memory_reserved() if cuda else None,
    }
    stated = stated_teraflops(torch.cuda.get_device_name(0), race.precision) if cuda else None
    return line | ({"mfu": line["teraflops"] / stated} if stated else {})


def _flops_per_token(race: Race) -> float:
    """Return the operations that the training needs per token: no recomputation, and logits at targets only."""
    plan = plan_of(race.settings, race.rows, race.precision)
    shapes = [
        shape for number in range(WARM_UP, race.steps) for shape in shapes_of(step_batch(race.rows, plan, number))
    ]
    layout = layout_of(plan, shapes, race.rows.longest)
    work = 0.0
    for shape in shapes:
        work += linear_flops(race.spec, shape) + lora_flops(race.spec, layout, shape) + head_flops(race.spec, shape)
        work += attention_flops(race.spec, shape) * 6 / 7  # a flash kernel's backward repeats one of the products
    return work / sum(shape.tokens for shape in shapes)


def free(device: str) -> None:
    """Give the memory of the last contestant back, and start its peak anew."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
