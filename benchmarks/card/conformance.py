"""Loss and gradients of each model family and precision on the device, against transformers and peft in float64."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from support import engine_runs, float64_reference, tiny

from card.settings import Line, OnDevice, Settings, worded

# Largest relative errors of the loss and of the worst gradient tensor, by norm, that rounding explains.
LIMITS = {"fp32": (1e-5, 1e-4), "bf16": (2e-2, 2e-1), "fp16": (5e-3, 5e-2)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FEW = 2  # cases in a tiny run


def lines(settings: Settings) -> Iterator[Line]:
    """Yield a line for each precision and model family. Bf16 and fp16 on a CPU are stored, and computed in float32."""
    cases = list(engine_runs.CASES.items())[: FEW if settings.tiny else None]
    for precision in LIMITS:
        if settings.device == "cpu" and precision == "fp16":
            continue
        for case, (family, changes) in cases:
            with tempfile.TemporaryDirectory() as scratch:
                try:
                    folder = tiny.save_model(family, Path(scratch) / "model", **changes)
                    _round_weights(folder, precision)
                    yield {"case": case, "precision": precision, **_errors(settings, precision, folder, Path(scratch))}
                except Exception as error:
                    yield {"case": case, "precision": precision, "ok": False, "error": worded(error)}


def _round_weights(folder: Path, precision: str) -> None:
    """Round the weights to the precision, so that the reference starts from the same numbers."""
    from safetensors.torch import load_file, save_file

    for file in folder.glob("*.safetensors"):
        tensors = {name: tensor.to(DTYPES[precision]).float() for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})


def _errors(settings: Settings, precision: str, folder: Path, scratch: Path) -> Line:
    plan = settings.plan(precision=precision, token_budget=100)
    way = OnDevice(settings.device, precision)
    adapter = engine_runs.start_with_b(way.open(folder, plan), scratch / "adapter")
    wanted = float64_reference.reference(folder, adapter, plan, engine_runs.SAMPLES)
    loss, gradients = engine_runs.loss_and_gradients(way, folder, plan, adapter, scratch / "own")
    loss_error, gradient_error = abs(loss / wanted.loss - 1), engine_runs.worst(gradients, wanted.gradients)
    most_loss, most_gradient = LIMITS[precision]
    ok = loss_error <= most_loss and gradient_error <= most_gradient
    return {"loss_error": loss_error, "gradient_error": gradient_error, "ok": ok}
