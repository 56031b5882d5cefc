"""Time and memory of one forward and backward pass in many layouts, beside the planner's: what card/fit.py fits to."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from card.settings import Line, OnDevice, Settings, missing, worded
from card.speed import MOST_MEMORY, NO_TENSORS, free
from card.work import Rows, layout_of, model_folder, plan_of, rows_of, shape_of, spec_of
from lorafit.data.micro_batch import MicroBatch, Sample, pack
from lorafit.engines.torch.engine import TorchEngine
from lorafit.hardware.detect import detect_machine
from lorafit.models.spec import ModelSpec
from lorafit.planner.memory import BYTES, Layout, layer_bytes, terms
from lorafit.planner.plan import Plan
from lorafit.planner.speed import flops, micro_batch_seconds, traffic_bytes, unpack_seconds
from lorafit.planner.throughput import rates
from peers.protocol import synchronise

SHAPE, PASSES = "llama-3.2-1b", 3
HALF = -2  # stands for half of the layers, ALL for all of them
ALL = -1
CHUNK = 256  # targets whose logits exist at once, about what the planner takes for this vocabulary


@dataclass(frozen=True)
class Way:
    """A layout to try: tokens of the micro-batch, layers that recompute, and targets whose logits exist at once."""

    tokens: int
    recompute: int = 0
    chunk: int = CHUNK


WAYS = (
    Way(4096), Way(1024), Way(16384), Way(4096, ALL), Way(2048), Way(8192), Way(512), Way(16384, ALL), Way(4096, HALF),
    Way(4096, chunk=1024), Way(32768),
)  # fmt: skip
QUANTIZED = (Way(4096), Way(16384))
TINY_WAYS = (Way(64), Way(128), Way(256), Way(128, ALL), Way(128, HALF))


def lines(settings: Settings) -> Iterator[Line]:
    """Yield a line for each layout, first for the base in 16 bits and then in 4 bits."""
    precision = "bf16" if settings.device == "cuda" else "fp32"
    folder = model_folder(SHAPE, settings.scratch / SHAPE, settings.tiny)
    spec = spec_of(folder)
    rows = rows_of("legal", spec.vocab, settings.tiny)
    for quantization in ("none", "4bit"):
        plain, quantized = (TINY_WAYS, TINY_WAYS[1:3]) if settings.tiny else (WAYS, QUANTIZED)
        ways = plain if quantization == "none" else quantized
        told: Line = {"shape": SHAPE, "precision": precision, "quantization": quantization}
        if quantization != "none" and (line := missing("bitsandbytes")):
            yield {**told, **line}
            continue
        plan = plan_of(settings, rows, precision, quantization=quantization, loss_chunk=CHUNK)
        try:
            engine = OnDevice(settings.device, precision).open(folder, plan)
        except Exception as error:
            yield {**told, "ok": False, "error": worded(error)}
            continue
        for way in ways:
            line = {**told, "tokens": way.tokens, "recompute": way.recompute, "chunk": way.chunk}
            yield {**line, **_guarded(settings, engine, spec, rows, way)}
        del engine
        free(settings.device)


def _guarded(settings: Settings, engine: TorchEngine, spec: ModelSpec, rows: Rows, way: Way) -> Line:
    """Return the figures of one layout, or why there are none."""
    micro = micro_batch(rows, way.tokens)
    recompute = {ALL: spec.layers, HALF: spec.layers // 2}.get(way.recompute, way.recompute)
    plan = replace(engine.plan, recompute=recompute, loss_chunk=way.chunk)
    try:
        found = _predicted(spec, plan, micro, rows.longest)
        if settings.device == "cuda":
            most = torch.cuda.get_device_properties(0).total_memory * (MOST_MEMORY + 1) / 2
            if found["predicted_tensor_bytes"] > most:
                return {"left_out": "more memory than the device has"}
        return {**found, **_measured(settings.device, engine, plan, micro)}
    except Exception as error:
        return {"ok": False, "error": worded(error)}


def micro_batch(rows: Rows, tokens: int) -> MicroBatch:
    """Return a micro-batch of exactly `tokens` tokens from the rows in their order, the last one cut."""
    samples: list[Sample] = []
    left = tokens
    while left > 1:
        sample = rows.samples[len(samples) % len(rows.samples)]
        sample = replace(sample, input_ids=sample.input_ids[:left], target_mask=sample.target_mask[:left])
        samples.append(sample)
        left -= len(sample)
    numbers = range(len(samples))
    return pack(samples, numbers, numbers)


def _measured(device: str, engine: TorchEngine, plan: Plan, micro: MicroBatch) -> Line:
    """Return the seconds of a forward and backward pass (median, shortest) and its peak memory."""
    engine.set_recompute(plan.recompute)
    engine.generic.chunk = plan.loss_chunk
    free(device)
    seconds = []
    for _pass in range(PASSES + 1):
        synchronise(device)
        began = time.perf_counter()
        engine.probe(micro)
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    cuda = device == "cuda"
    return {
        "seconds": statistics.median(seconds[1:]),
        "shortest": min(seconds[1:]),
        "peak_allocated_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "peak_reserved_bytes": torch.cuda.max_memory_reserved() if cuda else None,
    }


def _predicted(spec: ModelSpec, plan: Plan, micro: MicroBatch, longest: int) -> Line:
    """Return the planner's figures, and its terms as a fit needs them: operations, launches and bytes over its rates."""
    lengths = np.diff(micro.segments).astype(np.int64)
    shape = shape_of(micro)
    layout: Layout = layout_of(plan, [shape], min(longest, int(lengths.max())))
    rate, sizes = rates(detect_machine(), layout), terms(spec, layout)
    passes = 2.0 + min(plan.recompute, spec.layers) / spec.layers
    return {
        "predicted_seconds": micro_batch_seconds(spec, layout, rate, shape),
        "predicted_tensor_bytes": sum(size for name, size in sizes.items() if name not in NO_TENSORS),
        "terms": sizes,
        "layer_bytes": layer_bytes(spec, layout),
        "flops_seconds": flops(spec, layout, shape) / rate.flops,
        "moved_seconds": traffic_bytes(spec, layout, shape) / rate.bytes,
        "launches": passes * spec.layers,
        "unpacked_seconds": unpack_seconds(spec, layout, rate),
        "written_seconds": spec.linear_weights * BYTES[plan.precision] * passes / rate.bytes,
    }
