"""The law on the device: splits and gradient checkpointing give the same numbers; equal plans and a resume equal bits."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support import engine_runs, tiny

from card.settings import Line, OnDevice, Settings, worded
from lorafit.engines.torch.engine import TorchEngine

STEPS, HALF = 8, 4
SPLITS: dict[str, dict[str, Any]] = {
    "many micro-batches": {"token_budget": 100},
    "one sample at a time": {"max_micro_batch": 1},
    "gradient checkpointing": {"recompute": 2},
    "both": {"token_budget": 100, "recompute": 3},
}
# Relative difference of the losses, and of all lora_B after the steps, that rounding explains.
LIMITS = {"fp32": (1e-5, 1e-3), "bf16": (2e-2, 2e-1), "fp16": (5e-3, 5e-2)}


def lines(settings: Settings) -> Iterator[Line]:
    """Yield a line for each precision and split, for equal plans, and for a resume after half of the steps."""
    for precision in ("fp32",) if settings.device == "cpu" else LIMITS:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                folder = tiny.save_model("llama", Path(scratch) / "model")
                yield from _of_precision(settings, precision, folder, Path(scratch))
            except Exception as error:
                yield {"what": "the law", "precision": precision, "ok": False, "error": worded(error)}


def _of_precision(settings: Settings, precision: str, folder: Path, scratch: Path) -> Iterator[Line]:
    way, base = OnDevice(settings.device, precision), {"precision": precision, "lora_dropout": 0.1}

    def trained(name: str, **changes: Any) -> tuple[list[float], engine_runs.Arrays]:
        engine = way.open(folder, settings.plan(**{**base, **changes}))
        losses = engine_runs.run(engine, engine.plan, range(1, STEPS + 1))
        return losses, engine_runs.adapter_of(engine, scratch / name)

    losses, adapter = trained("whole")
    for name, changes in SPLITS.items():
        other_losses, other = trained(name, **changes)
        loss_error = max(abs(a / b - 1) for a, b in zip(other_losses, losses, strict=True))
        b_error = engine_runs.b_norm(other, adapter)
        ok = loss_error <= LIMITS[precision][0] and b_error <= LIMITS[precision][1]
        yield {"what": name, "precision": precision, "loss_error": loss_error, "b_error": b_error, "ok": ok}
    again_losses, again = trained("again")
    same = again_losses == losses and _equal(again, adapter)
    yield {"what": "equal plans, equal bits", "precision": precision, "ok": same}
    yield {
        "what": "resume, equal bits",
        "precision": precision,
        "ok": _equal(_resumed(settings, way, folder, scratch, base), adapter),
    }


def _resumed(
    settings: Settings, way: OnDevice, folder: Path, scratch: Path, base: dict[str, Any]
) -> engine_runs.Arrays:
    """Return the adapter of a training that was saved after HALF steps and continued in another engine."""
    checkpoint = scratch / "checkpoint"
    checkpoint.mkdir()
    first = way.open(folder, settings.plan(**base))
    engine_runs.run(first, first.plan, range(1, HALF + 1))
    first.save(checkpoint)
    second: TorchEngine = way.open(folder, settings.plan(**base))
    second.load(checkpoint)
    engine_runs.run(second, second.plan, range(HALF + 1, STEPS + 1))
    return engine_runs.adapter_of(second, scratch / "resumed")


def _equal(one: engine_runs.Arrays, other: engine_runs.Arrays) -> bool:
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)
