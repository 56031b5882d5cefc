"""The flash kernel for samples of different lengths against attention per segment, and the fast path on the device."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from support import tiny

from card.settings import Line, OnDevice, Settings, place, worded
from lorafit.engines.torch import self_check
from lorafit.engines.torch.attention import supports_varlen
from lorafit.engines.torch.device import arithmetic_dtype, get_device
from lorafit.engines.torch.packed.decoder import PackedDecoder, why_unsupported

FAMILIES = ("llama", "mistral", "qwen3", "gemma2")


def lines(settings: Settings) -> Iterator[Line]:
    """Yield the kernel's error for each family and 16-bit precision, then what the fast path gives on this device."""
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if not supports_varlen(get_device(settings.device), dtype):
            yield {"what": "varlen kernel", "precision": precision, "left_out": "no flash kernel on this device"}
            continue
        for family in FAMILIES:
            yield {
                "what": "varlen kernel",
                "family": family,
                "precision": precision,
                **_varlen(settings, family, precision, dtype),
            }
    for precision in ("fp32", "bf16"):
        yield {"what": "fast path", "precision": precision, **_fast_path(settings, precision)}


def _varlen(settings: Settings, family: str, precision: str, dtype: torch.dtype) -> Line:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = tiny.save_model(family, Path(scratch) / family)
            engine = OnDevice(settings.device, precision).open(folder, settings.plan(precision=precision))
            off = self_check.varlen_attention_error(engine.model, dtype, settings.device)
            return {"error_by_norm": off, "ok": off <= self_check.TOLERANCE[dtype], "notes": engine.facts.notes}
        except Exception as error:
            return {"ok": False, "error": worded(error), "where": place(error)}


def _fast_path(settings: Settings, precision: str) -> Line:
    """Compute one micro-batch by the fast path, whether or not the engine would take it here, and compare both paths."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = tiny.save_model("llama", Path(scratch) / "llama")
        plan = settings.plan(precision=precision)
        engine = OnDevice(settings.device, precision).open(folder, plan)
        engine.packed = None
        tiny.fill_b(engine)
        decoder = engine.model.get_decoder()
        reason = why_unsupported(decoder, engine.head, plan, engine.device)
        micro = self_check.tiny_micro_batch(engine.model)
        try:
            wanted = {n: g.clone() for n, g in tiny.gradients(engine, 1, [micro], micro.num_targets).items()}
            engine.packed = PackedDecoder(decoder, engine.head, plan.loss_chunk, engine.recompute, engine.dropout)
            found = tiny.gradients(engine, 1, [micro], micro.num_targets)
            off = tiny.worst(found, wanted)
            most = self_check.TOLERANCE[arithmetic_dtype(engine.setup)]
            return {"engine_refuses": reason, "error_by_norm": off, "ok": off <= most}
        except Exception as error:
            return {"engine_refuses": reason, "ok": False, "error": worded(error), "where": place(error)}
