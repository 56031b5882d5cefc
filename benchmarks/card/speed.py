"""Tokens per second, peak memory and MFU of lorafit and of peft with transformers' Trainer, and the planner's predictions."""

import gc
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from card import peers
from card.facts import stated_teraflops
from card.settings import Line, OnDevice, Settings, missing, worded
from card.work import Rows, layout_of, model_folder, note, plan_of, rows_of, shapes_of, spec_of, step_batch
from lorafit.engines.torch.attention import SEGMENT_ATTENTION, VARLEN_ATTENTION
from lorafit.engines.torch.engine import TorchEngine
from lorafit.hardware.detect import detect_machine
from lorafit.models.spec import ModelSpec
from lorafit.planner.memory import peak_bytes
from lorafit.planner.plan import Plan
from lorafit.planner.speed import flops, step_seconds
from lorafit.planner.throughput import rates
from peers.protocol import synchronise

WARM_UP, STEPS, TINY_STEPS = 2, 8, 2


def one_billion(settings: Settings) -> Iterator[Line]:
    """Yield the figures of the shape of Llama-3.2-1B."""
    yield from _of_shape(settings, "llama-3.2-1b")


def three_billion(settings: Settings) -> Iterator[Line]:
    """Yield the figures of the shape of Llama-3.2-3B."""
    yield from _of_shape(settings, "llama-3.2-3b")


def _of_shape(settings: Settings, shape: str) -> Iterator[Line]:
    precision = "bf16" if settings.device == "cuda" else "fp32"
    with tempfile.TemporaryDirectory() as scratch:
        note(f"writing {shape}")
        folder = model_folder(shape, Path(scratch) / shape, settings.tiny)
        spec = spec_of(folder)
        for kind in ("legal", "long"):
            rows = rows_of(kind, spec.vocab, settings.tiny)
            for line in _race(settings, folder, spec, rows, precision):
                yield {"shape": shape, "rows": kind, "precision": precision, **line}


def _race(settings: Settings, folder: Path, spec: ModelSpec, rows: Rows, precision: str) -> Iterator[Line]:
    """Yield lorafit's figures, those of each peer, and lorafit's again, so that a drift of the clock shows."""
    plan = plan_of(settings, rows, precision)
    yield {"who": "lorafit", **_guarded(settings, folder, spec, rows, plan)}
    for name, options in peers.contestants(rows):
        yield {"who": name, **_peer(settings, folder, rows, precision, options)}
    yield {"who": "lorafit, again", **_guarded(settings, folder, spec, rows, plan)}
    if settings.device == "cuda":
        yield {
            "who": "lorafit, attention per segment",
            **_guarded(settings, folder, spec, rows, plan, SEGMENT_ATTENTION),
        }
    if line := missing("bitsandbytes"):
        yield {"who": "lorafit, QLoRA", **line}
    else:
        quantized = plan_of(settings, rows, precision, quantization="4bit", optimizer="paged_adamw_8bit")
        yield {"who": "lorafit, QLoRA", **_guarded(settings, folder, spec, rows, quantized)}


def _guarded(
    settings: Settings, folder: Path, spec: ModelSpec, rows: Rows, plan: Plan, attention: str | None = None
) -> Line:
    """Return lorafit's figures, or the error as a line."""
    _free(settings.device)
    try:
        return _lorafit(settings, folder, spec, rows, plan, attention)
    except Exception as error:
        return {"ok": False, "error": worded(error)}
    finally:
        _free(settings.device)


def _lorafit(settings: Settings, folder: Path, spec: ModelSpec, rows: Rows, plan: Plan, attention: str | None) -> Line:
    engine = OnDevice(settings.device, plan.precision).open(folder, plan)
    if attention is not None:
        engine.model.set_attn_implementation(attention)
    seconds, tokens = [], []
    count = TINY_STEPS if settings.tiny else STEPS
    for number in range(WARM_UP + count):
        batch = step_batch(rows, plan, number)
        synchronise(settings.device)
        began = time.perf_counter()
        result = engine.step(number + 1, batch.micro_batches, batch.num_targets, plan.learning_rate)
        synchronise(settings.device)
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - began)
            tokens.append(batch.num_tokens)
    line = figures(seconds, tokens, settings.device)
    line["attention"] = _attention(engine)
    line["loss"] = result.loss_sum / batch.num_targets
    return line | _against_the_plan(settings, spec, rows, plan, line)


def _attention(engine: TorchEngine) -> str:
    name = engine.model.config._attn_implementation
    return {SEGMENT_ATTENTION: "per segment", VARLEN_ATTENTION: "varlen kernel"}.get(name, name)


def _against_the_plan(settings: Settings, spec: ModelSpec, rows: Rows, plan: Plan, line: Line) -> Line:
    """Return MFU, and predicted over measured time and memory with what the constants would have to be."""
    batches = [step_batch(rows, plan, number) for number in range(WARM_UP, WARM_UP + 2)]
    shapes = [shapes_of(batch) for batch in batches]
    longest = max(len(sample) for sample in rows.samples)
    layout = layout_of(plan, shapes[0], longest)
    machine = detect_machine()
    rate = rates(machine, layout)
    predicted = statistics.mean(step_seconds(spec, layout, rate, one) for one in shapes)
    work = statistics.mean(sum(flops(spec, layout, shape) for shape in one) for one in shapes)
    peak = peak_bytes(spec, layout)
    found: Line = {
        "teraflops": work / line["step_seconds"] / 1e12,
        "predicted_step_seconds": predicted,
        "predicted_peak_bytes": peak,
        "speed_factor": predicted / line["step_seconds"],  # times the efficiency in planner/throughput.py
    }
    if line["peak_allocated_bytes"] is not None:
        found["memory_difference_bytes"] = line["peak_allocated_bytes"] - peak
    name = torch.cuda.get_device_name(0) if settings.device == "cuda" else ""
    stated = stated_teraflops(name, plan.precision) if name else None
    return found | ({"mfu": found["teraflops"] / stated} if stated else {})


def _peer(settings: Settings, folder: Path, rows: Rows, precision: str, options: Line) -> Line:
    """Return the figures of transformers' Trainer (or TRL's) with these options, or why there are none."""
    if line := missing(*options["needs"]):
        return line
    _free(settings.device)
    count = TINY_STEPS if settings.tiny else STEPS
    try:
        run = peers.Run(folder, rows, precision, settings.device, WARM_UP + count)
        seconds = peers.train(run, options)[WARM_UP:]
        tokens = [sum(map(len, rows.step(number))) for number in range(WARM_UP, WARM_UP + count)]
        return figures(seconds, tokens, settings.device)
    except Exception as error:
        return {"ok": False, "error": worded(error)}
    finally:
        _free(settings.device)


def figures(seconds: list[float], tokens: list[int], device: str) -> Line:
    """Return tokens per second (median, lowest, highest), the median step, and the peak memory of the device."""
    speeds = [count / time for count, time in zip(tokens, seconds, strict=True)]
    cuda = device == "cuda"
    return {
        "tokens_per_second": statistics.median(speeds),
        "slowest": min(speeds),
        "fastest": max(speeds),
        "step_seconds": statistics.median(seconds),
        "peak_allocated_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "peak_reserved_bytes": torch.cuda.max_memory_reserved() if cuda else None,
    }


def _free(device: str) -> None:
    """Give the memory of the last contestant back, and start its peak anew."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
