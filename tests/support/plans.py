"""Plans and samples for tests. No tensor library is imported."""

from typing import Any

import numpy as np

from lorafit.data.micro_batch import Sample
from lorafit.planner.plan import Plan

VOCAB = 96


def make_plan(**changes: Any) -> Plan:
    """Return a plan of ten steps of 16 samples; `changes` replace its fields."""
    facts: dict[str, Any] = {
        "engine": "torch", "device": "cpu", "precision": "fp32", "quantization": "none", "optimizer": "adamw",
        "steps": 10, "effective_batch": 16, "train_samples": 32, "valid_samples": 0, "num_epochs": 5.0, "seed": 42,
        "learning_rate": 1e-3, "lr_scheduler": "cosine", "warmup_steps": 1, "weight_decay": 0.0, "adam_beta1": 0.9,
        "adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_grad_norm": 1.0, "lora_r": 4, "lora_alpha": 8.0,
        "lora_dropout": 0.0, "lora_targets": "all-linear", "data_digest": "", "token_budget": 4096,
        "max_micro_batch": 4096, "recompute": 0, "loss_chunk": 7, "save_steps": 0, "eval_steps": 0,
        "keep_checkpoints": 2, "predicted_peak_bytes": 0, "available_bytes": 0,
    }  # fmt: skip
    return Plan(**{**facts, **changes})


def make_samples(count: int, vocab: int = VOCAB, longest: int = 24, seed: int = 0) -> list[Sample]:
    """Return `count` random samples of different lengths; the second half of each sample is its targets."""
    rng = np.random.default_rng(seed)
    samples = []
    for length in rng.integers(4, longest, count):
        mask = np.arange(length) >= length // 2
        samples.append(Sample(rng.integers(3, vocab, length).astype(np.int32), mask))
    return samples
