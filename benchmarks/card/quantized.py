"""NF4 and 8-bit base weights, and the paged 8-bit optimizer, where bitsandbytes is installed."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from support import dequantized, engine_runs, float64_reference, tiny

from card.settings import Line, OnDevice, Settings, missing, worded

WIDE = {"hidden_size": 256, "intermediate_size": 512}  # rows of whole quantization blocks
MOST_ERROR = {"4bit": 2e-2, "8bit": 1e-1}  # worst gradient against float64 over the dequantized weights, by norm
STEPS = 6
MOST_LOSS_DIFFERENCE = 2e-2  # relative, of the 8-bit optimizer's losses from AdamW's


def lines(settings: Settings) -> Iterator[Line]:
    """Yield the gradient's error for 4-bit and 8-bit base weights, and the loss curve of the paged optimizer."""
    if line := missing("bitsandbytes"):
        yield line
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = tiny.save_model("llama", Path(scratch) / "model", **WIDE)
        for quantization in MOST_ERROR:
            try:
                yield {"what": quantization, **_gradients(settings, quantization, folder, Path(scratch) / quantization)}
            except Exception as error:
                yield {"what": quantization, "ok": False, "error": worded(error)}
        try:
            yield {"what": "paged_adamw_8bit", **_optimizer(settings, folder)}
        except Exception as error:
            yield {"what": "paged_adamw_8bit", "ok": False, "error": worded(error)}


def _gradients(settings: Settings, quantization: str, folder: Path, scratch: Path) -> Line:
    plan = settings.plan(quantization=quantization)
    way = OnDevice(settings.device, "fp32")
    engine = way.open(folder, plan)
    adapter = engine_runs.start_with_b(engine, scratch / "adapter")
    plain = dequantized.plain_model(engine, folder, scratch / "plain")
    loss, gradients = engine_runs.loss_and_gradients(way, folder, plan, adapter, scratch / "own")
    wanted = float64_reference.reference(plain, adapter, plan, engine_runs.SAMPLES)
    off = engine_runs.worst(gradients, wanted.gradients)
    return {"loss_error": abs(loss / wanted.loss - 1), "gradient_error": off, "ok": off <= MOST_ERROR[quantization]}


def _optimizer(settings: Settings, folder: Path) -> Line:
    losses = {}
    for optimizer in ("adamw", "paged_adamw_8bit"):
        engine = OnDevice(settings.device, "fp32").open(folder, settings.plan(optimizer=optimizer))
        losses[optimizer] = engine_runs.run(engine, engine.plan, range(1, STEPS + 1))
    pairs = zip(losses["paged_adamw_8bit"], losses["adamw"], strict=True)
    off = max(abs(one / other - 1) for one, other in pairs)
    return {"losses": losses, "loss_error": off, "ok": off <= MOST_LOSS_DIFFERENCE}
