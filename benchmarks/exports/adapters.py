"""Adapters that a short training made, and the same changes written with other ranks, scales and sizes."""

from pathlib import Path
from typing import Any

import numpy as np
from support import engine_runs
from support.plans import make_plan

from exports.models import ROWS, conversations
from lorafit.data.render import render
from lorafit.engines.base import Setup
from lorafit.engines.tokenizer import load_tokenizer
from lorafit.engines.torch.engine import TorchEngine
from lorafit.run_folders.adapter import AdapterConfig, lora_names, modules_of, read_adapter, write_adapter
from lorafit.units import TEMPLATE_DATE

TOKENS, BATCH, RANK = 160, 4, 8


def train(base: Path, folder: Path, steps: int = 24, rate: float = 2.5e-3, seed: int = 0) -> Path:
    """Train an adapter on `base` with lorafit's own engine, and return `folder`, in which it is saved."""
    plan = make_plan(
        steps=steps, effective_batch=BATCH, train_samples=ROWS, learning_rate=rate, lora_r=RANK, lora_alpha=2.0 * RANK,
        seed=seed, loss_chunk=256,
    )  # fmt: skip
    tokenizer = load_tokenizer(base)
    samples = [render(turns, tokenizer, TOKENS, TEMPLATE_DATE).sample for turns in conversations(seed)]
    engine = TorchEngine.open(Setup(base, str(base), "cpu", "fp32", plan=plan))
    engine_runs.run(engine, plan, range(1, steps + 1), samples)
    folder.mkdir(parents=True)
    engine.save_adapter(folder)
    return folder


def rewrite(adapter: Path, folder: Path, size: float = 1.0, alpha: float = 16.0, **settings: Any) -> Path:
    """Write `size` times the change of `adapter` with other `settings` of AdapterConfig, and return `folder`.

    A change of a higher rank than that of its layer is cut to its largest parts.
    """
    config, tensors = read_adapter(adapter)
    modules = modules_of(tensors)
    known = {"dropout": 0.0, "target_modules": config.target_modules, **settings}
    wanted = AdapterConfig(config.base_model, known.pop("r", config.r), alpha, **known)
    found = {}
    for module in modules:
        a, b = (tensors[own] for own in lora_names(module))
        rank = wanted.rank_of(module)
        u, s, v = np.linalg.svd(size * config.scale_of(module) / wanted.scale_of(module) * (b @ a), full_matrices=False)
        root = np.sqrt(np.where(np.arange(rank) < len(a), s[:rank], 0))
        found |= dict(zip(lora_names(module), (root[:, None] * v[:rank], u[:, :rank] * root), strict=True))
    write_adapter(folder, wanted, {name: values.astype(np.float32) for name, values in found.items()})
    return folder
