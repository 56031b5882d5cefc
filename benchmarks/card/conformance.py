"""Loss and gradients of each model family and precision on the device, against transformers and peft in float64.

Beside them stand the errors of transformers and peft themselves in the same precision on the same device: where rounding
sends a token to another expert, both are far from float64, and neither computes wrongly.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from support import engine_runs, float64_reference, tiny

from card.settings import Line, OnDevice, Settings, worded
from lorafit.planner.plan import Plan
from lorafit.planner.schedule import step_samples

# Largest relative errors of the loss and of the worst gradient tensor, by norm, that rounding explains.
LIMITS = {"fp32": (1e-5, 1e-4), "bf16": (2e-2, 2e-1), "fp16": (5e-3, 5e-2)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
EXPERTS = 3.0  # times the limits in 16 bits: rounding sends a token to another expert, lorafit's or peft's, by chance
TIMES_PEFT = 2.0  # a larger error than the limit is right up to this multiple of peft's
PEFT_SCALE = 2.0**10  # on peft's loss, so that its fp16 gradients do not underflow
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
                    found = _errors(settings, precision, family, folder, Path(scratch))
                    yield {"case": case, "precision": precision, **found}
                except Exception as error:
                    yield {"case": case, "precision": precision, "ok": False, "error": worded(error)}


def _round_weights(folder: Path, precision: str) -> None:
    """Round the weights to the precision, so that the reference starts from the same numbers."""
    from safetensors.torch import load_file, save_file

    for file in folder.glob("*.safetensors"):
        tensors = {name: tensor.to(DTYPES[precision]).float() for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})


def _errors(settings: Settings, precision: str, family: str, folder: Path, scratch: Path) -> Line:
    plan = settings.plan(precision=precision, token_budget=100)
    way = OnDevice(settings.device, precision)
    adapter = engine_runs.start_with_b(way.open(folder, plan), scratch / "adapter")
    wanted = float64_reference.reference(folder, adapter, plan, engine_runs.SAMPLES)
    loss, gradients = engine_runs.loss_and_gradients(way, folder, plan, adapter, scratch / "own")
    found = abs(loss / wanted.loss - 1), engine_runs.worst(gradients, wanted.gradients)
    loss, gradients = _of_peft(settings.device, precision, folder, adapter, plan)
    peft = abs(loss / wanted.loss - 1), engine_runs.worst(gradients, wanted.gradients)
    wider = EXPERTS if family == "mixtral" and precision != "fp32" else 1.0
    allowed = [max(wider * limit, TIMES_PEFT * off) for limit, off in zip(LIMITS[precision], peft, strict=True)]
    ok = all(off <= most for off, most in zip(found, allowed, strict=True))
    return {
        "loss_error": found[0], "gradient_error": found[1], "peft_loss_error": peft[0], "peft_gradient_error": peft[1],
        "ok": ok,
    }  # fmt: skip


def _of_peft(device: str, precision: str, folder: Path, adapter: Path, plan: Plan) -> tuple[float, engine_runs.Arrays]:
    """Return loss and gradients of step 1 by transformers and peft on the device: one sample at a time, sdpa or eager.

    Base and adapter are in `precision`; the loss is summed in float64. On a CPU bf16 is computed in bf16, unlike lorafit's.
    """
    model = float64_reference.peft_model(folder, adapter).to(device, DTYPES[precision])
    samples = [engine_runs.SAMPLES[row] for row in step_samples(plan, 1)]
    total, loss_sum = sum(sample.num_targets for sample in samples), 0.0
    for sample in samples:
        loss = float64_reference.sample_loss(model, sample)
        (loss * (PEFT_SCALE / total)).backward()
        loss_sum += loss.item()
    named = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    zero = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named.items()}
    return loss_sum / total, {n: (grad.double() / PEFT_SCALE).cpu().numpy() for n, grad in zero.items()}
