"""Training steps and gradients of any engine, through the Engine protocol alone, and the model families to try.

A gradient is read from the optimizer state: after the first step without clipping, the first moment is (1 - beta1) of it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lorafit.data.batching import StepBatch, build_step_batch
from lorafit.data.micro_batch import Sample
from lorafit.engines.base import Engine
from lorafit.planner.plan import Plan
from lorafit.planner.schedule import lr_at, step_samples
from lorafit.run_folders.adapter import WEIGHTS, read_adapter
from support import tiny


class Opener(Protocol):
    """An engine on a device, in one precision."""

    def open(self, folder: Path, plan: Plan | None) -> Engine:
        """Open the model in `folder`, for training with `plan` or, without a plan, for answers only."""
        ...


Arrays = dict[str, NDArray[Any]]


SAMPLES = tiny.make_samples(32)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied, grouped heads": ("llama", {}),
    "llama, untied, llama3 rope": ("llama", {"tie_word_embeddings": False, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}}),
    "qwen2, biases, window": ("qwen2", {}),
    "qwen2, biases, no window": ("qwen2", {"use_sliding_window": False, "max_window_layers": 9}),
    "qwen3, norms of q and k": ("qwen3", {}),
    "mistral, window": ("mistral", {}),
    "gemma2, soft caps, window": ("gemma2", {}),
    "gemma3, two ropes, window": ("gemma3", {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "phi3, fused products": ("phi3", {}),
    "phi3, long rope": ("phi3", {"max_position_embeddings": 256, "original_max_position_embeddings": 32,
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 500.0, "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [2.0, 3.0, 4.0, 5.0], "original_max_position_embeddings": 32}}),
    "granite, scaled everywhere": ("granite", {}),
    "mixtral, experts": ("mixtral", {}),
    "qwen3.5, gated delta rule": ("qwen3_5", {}),
    "gemma4, shared keys, two head widths": ("gemma4", {}),
    "glm-4.5, shared and routed experts": ("glm4_moe", {}),
    "gpt-oss, attention sinks, experts": ("gpt_oss", {}),
}  # fmt: skip


# mlx_lm reads these types from folders as they lie on a hub, and not as transformers 5 saves them.
NOT_IN_MLX = ("qwen3.5, gated delta rule", "gemma4, shared keys, two head widths", "gpt-oss, attention sinks, experts")


def step_batch(plan: Plan, step: int, samples: list[Sample] = SAMPLES) -> StepBatch:
    """Return the micro-batches of `step`."""
    return build_step_batch(samples, step_samples(plan, step), plan.token_budget, plan.max_micro_batch)


def run(engine: Engine, plan: Plan, steps: range, samples: list[Sample] = SAMPLES) -> list[float]:
    """Train `steps` and return the mean loss of each."""
    losses = []
    for step in steps:
        data = step_batch(plan, step, samples)
        result = engine.step(step, data.micro_batches, data.num_targets, lr_at(step, plan))
        losses.append(result.loss_sum / data.num_targets)
    return losses


def adapter_of(engine: Engine, scratch: Path) -> Arrays:
    """Return the adapter's weights by their names in PEFT's files."""
    scratch.mkdir(parents=True, exist_ok=True)
    engine.save_adapter(scratch)
    return dict(read_adapter(scratch)[1])


def start_with_b(engine: Engine, scratch: Path, seed: int = 1) -> Path:
    """Set every lora_B to random values, so that no gradient is zero. Return `scratch`, the folder of that adapter."""
    scratch.mkdir(parents=True, exist_ok=True)
    engine.save_adapter(scratch)
    tensors = read_adapter(scratch)[1]
    rng = np.random.default_rng(seed)
    filled = {
        n: rng.normal(0, 0.05, a.shape).astype(np.float32) if ".lora_B." in n else a for n, a in sorted(tensors.items())
    }
    save_file(filled, scratch / WEIGHTS, {"format": "pt"})  # the settings stay as the engine wrote them for peft
    engine.load_adapter(scratch)
    return scratch


def loss_and_gradients(
    way: Opener, folder: Path, plan: Plan, adapter: Path | None, scratch: Path, samples: list[Sample] = SAMPLES
) -> tuple[float, Arrays]:
    """Return the mean loss and the gradients of step 1.

    The weights are those in `adapter`; None: new weights with random B.
    """
    plan = replace(plan, max_grad_norm=0.0, optimizer="adamw")
    engine = way.open(folder, plan)
    if adapter is None:
        start_with_b(engine, scratch / "start")
    else:
        engine.load_adapter(adapter)
    return first_step(engine, plan, scratch, samples)


def first_step(engine: Engine, plan: Plan, scratch: Path, samples: list[Sample]) -> tuple[float, Arrays]:
    """Train step 1 of `plan`, which has AdamW without clipping; return its mean loss and its gradients."""
    (loss,) = run(engine, plan, range(1, 2), samples)
    scratch.mkdir(parents=True, exist_ok=True)
    engine.save(scratch)
    moments = load_file(scratch / "optimizer.safetensors")
    return loss, {
        name.removesuffix(".exp_avg"): moment / (1 - plan.adam_beta1)
        for name, moment in moments.items()
        if name.endswith(".exp_avg")
    }


def worst(found: Arrays, wanted: Arrays) -> float:
    """Return the largest relative distance, by norm, between a tensor and the wanted tensor."""
    assert found.keys() == wanted.keys()
    return max(float(np.linalg.norm(found[n] - wanted[n]) / max(np.linalg.norm(wanted[n]), 1e-20)) for n in wanted)


def b_norm(found: Arrays, wanted: Arrays) -> float:
    """Return the distance between all lora_B and the wanted ones, relative to the norm of the wanted ones."""
    names = [name for name in wanted if ".lora_B." in name]
    off = sum(float(np.sum((found[n].astype(np.float64) - wanted[n]) ** 2)) for n in names)
    return float((off / sum(float(np.sum(wanted[n].astype(np.float64) ** 2)) for n in names)) ** 0.5)
