"""Who takes part? One line each: its file in peers/, its options, its Python. Defaults stand beside the best settings."""

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from race.environment import LLAMA_FACTORY, python_of

REFERENCE = "lorafit fast"


@dataclass(frozen=True)
class Contestant:
    """`module` is its file in peers/; `environment` a Python of its own (race/environment.py); `needs` a package."""

    name: str
    module: str
    options: dict[str, Any] = field(default_factory=dict)
    environment: str | None = None
    needs: str | None = None
    devices: tuple[str, ...] = ("cpu", "mps", "cuda")
    quick: bool = False
    fp32_file: bool = False  # computes in what the file holds, so it is given fp32
    usual: bool = True  # takes part where nobody is named

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.environment is None else python_of(self.environment)

    def absent(self) -> str | None:
        """Why it cannot take part, or None."""
        if self.environment is not None and not self.python.is_file():
            return f"its environment {self.environment} is not built"
        if self.needs is not None and importlib.util.find_spec(self.needs) is None:
            return f"the package {self.needs} is not installed"
        return None


PLAIN = {"recompute": False, "batch_size": 4, "sorted": True}  # the fastest that padding allows
PACKED = {"recompute": False, "packed": True}
LEAN = {"recompute": True, "batch_size": 1}
OWN = "lorafit_own"

CONTESTANTS = [
    Contestant(REFERENCE, OWN, {"allocator": "fast"}, quick=True),
    Contestant("lorafit lean", OWN, {"allocator": "lean", "token_budget": 512, "recompute": 999}),
    Contestant("naive", "hf_naive", needs="peft", quick=True),
    Contestant("trl default", "trl_sft", {"recompute": True, "batch_size": 8}, needs="trl"),
    Contestant("trl tuned", "trl_sft", PLAIN, needs="trl"),
    Contestant("trl packing", "trl_sft", PACKED, needs="trl", quick=True),
    Contestant("trl lean", "trl_sft", LEAN, needs="trl"),
    Contestant("lf default", "llama_factory", {"recompute": True, "batch_size": 2}, LLAMA_FACTORY, fp32_file=True),
    Contestant("lf tuned", "llama_factory", PLAIN, LLAMA_FACTORY, fp32_file=True),
    Contestant("lf packing", "llama_factory", PACKED, LLAMA_FACTORY, quick=True, fp32_file=True),
    Contestant("lf lean", "llama_factory", LEAN, LLAMA_FACTORY, fp32_file=True),
    Contestant("unsloth", "unsloth_sft", {"batch_size": 4}, needs="unsloth", devices=("cuda",)),
    # Variants of ours, for a look at what one choice costs: --only "lorafit default"
    Contestant("lorafit default", OWN, {"allocator": "default"}, usual=False),
    Contestant("lorafit trimmed", OWN, {"allocator": "lean"}, usual=False),
    Contestant("lorafit bf16", OWN, {"token_budget": 512, "recompute": 999, "precision": "bf16"}, usual=False),
]


def chosen(device: str, quick: bool, only: list[str], reference: str = REFERENCE) -> list[Contestant]:
    """Those that should run here, the reference first. Raises SystemExit for a name that nobody has."""
    if unknown := {*only, reference} - {c.name for c in CONTESTANTS}:
        raise SystemExit(
            f"--only: nobody is called {', '.join(sorted(unknown))}: known are {', '.join(c.name for c in CONTESTANTS)}"
        )
    here = [c for c in CONTESTANTS if device in c.devices]
    here.sort(key=lambda c: c.name != reference)
    if only:
        return [c for c in here if c.name in only or c.name == reference]
    return [c for c in here if (c.quick if quick else c.usual)]
