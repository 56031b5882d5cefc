"""Configurations to measure: about forty combinations of model, precision, length, token budget, recompute and rank."""

from dataclasses import asdict, dataclass
from typing import Any

# Longest sample, token budget, share of the layers with gradient checkpointing, rank.
Split = tuple[int, int, float, int]
DEMO: list[Split] = [
    (128, 512, 0, 16), (256, 1024, 0, 16), (384, 1024, 0, 64), (512, 2048, 0, 32), (1024, 2048, 0, 8), (2048, 2048, 0, 32),
    (2048, 4096, 0, 32), (512, 1024, 0.5, 32), (512, 1024, 1, 32), (2048, 2048, 0.5, 16), (2048, 2048, 1, 8),
    (1024, 4096, 1, 64),
]  # fmt: skip
HALF_BILLION: list[Split] = [
    (128, 1024, 0, 8),
    (512, 1024, 0, 32),
    (512, 2048, 0.5, 32),
    (1024, 2048, 1, 64),
    (2048, 2048, 0, 16),
]
ONE_BILLION: list[Split] = [(256, 512, 0, 32), (512, 512, 0.5, 16), (512, 1024, 1, 64), (1024, 1024, 0, 8)]
THREE_BILLION: list[Split] = [(256, 256, 0, 8), (512, 512, 1, 32)]
# QUICK: small models, every precision and quantization.
WHOLE = [
    ("demo", "fp32", "none", DEMO), ("demo", "fp32", "8bit", DEMO[7:9]), ("demo", "bf16", "none", DEMO[1:2]),
    ("gelu-0.1b", "fp32", "none", [DEMO[1], *DEMO[7:10]]), ("qwen2.5-0.5b", "fp32", "none", HALF_BILLION), ("qwen2.5-0.5b", "bf16", "none", HALF_BILLION[1:3]),
    ("qwen2.5-0.5b", "fp32", "4bit", HALF_BILLION[:2]), ("llama-3.2-1b", "fp32", "none", ONE_BILLION),
    ("llama-3.2-1b", "bf16", "none", ONE_BILLION), ("llama-3.2-1b", "fp32", "4bit", ONE_BILLION[:3]),
    ("llama-3.2-3b", "bf16", "none", THREE_BILLION), ("llama-3.2-3b", "fp32", "4bit", THREE_BILLION[:1]),
]  # fmt: skip
QUICK = [
    ("demo", "fp32", "none", DEMO[:3] + DEMO[7:10]), ("demo", "bf16", "none", DEMO[1:2]),
    ("demo", "fp32", "8bit", DEMO[7:8]), ("qwen2.5-0.5b", "fp32", "none", HALF_BILLION[:2]),
    ("qwen2.5-0.5b", "bf16", "none", HALF_BILLION[1:2]), ("qwen2.5-0.5b", "fp32", "4bit", HALF_BILLION[1:2]),
]  # fmt: skip
PROFILES = ("lean", "fast", "default")  # assigned in turn


@dataclass(frozen=True)
class Configuration:
    """One measurement.

    `kind` is steps (`max_steps` of them without preflight), run (a whole run with preflight) or limit (memory limited
    to `limit_gib`).
    """

    model: str
    precision: str
    quantization: str
    longest: int
    token_budget: int | None
    recompute: float | None  # share of the layers
    lora_r: int
    allocator: str
    kind: str = "steps"
    max_steps: int = 2
    limit_gib: int | None = None

    @property
    def key(self) -> str:
        """Return all values in one string, the key of the results."""
        return " ".join(str(value) for value in asdict(self).values())

    def facts(self) -> dict[str, Any]:
        """Return all fields as a dictionary."""
        return asdict(self)


def steps(quick: bool) -> list[Configuration]:
    """Return the configurations that are compared without preflight."""
    found: list[Configuration] = []
    for model, precision, quantization, splits in QUICK if quick else WHOLE:
        for longest, budget, recompute, rank in splits:
            profile = PROFILES[len(found) % len(PROFILES)]
            found.append(Configuration(model, precision, quantization, longest, budget, recompute, rank, profile))
    return found


def runs() -> list[Configuration]:
    """Return the whole runs after preflight, of 300 steps each."""
    shapes: list[tuple[int, int | None, float | None, int]] = [
        (128, 256, 0, 16), (192, 192, 0, 32), (128, 128, 1, 16), (96, None, None, 64), (128, 128, 0.5, 32),
    ]  # fmt: skip
    return [
        Configuration("demo", "fp32", "none", longest, budget, recompute, rank, "auto", "run", 300)
        for longest, budget, recompute, rank in shapes
    ]


def limits() -> list[Configuration]:
    """Return runs under memory limits: the planner must find a plan or say what would fit."""
    return [
        Configuration(model, "auto", "auto", 512, None, None, 32, "auto", "limit", 2, gib)
        for model in ("demo", "llama-3.2-1b")
        for gib in (3, 4, 6, 8, 12)
    ]
