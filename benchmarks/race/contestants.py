"""Contestants of the race: for each its file in peers/, its options and its Python.

The list has the default settings of a library beside its best settings.
"""

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from race.environment import LLAMA_FACTORY, python_of

REFERENCE = "lorafit fast"


@dataclass(frozen=True)
class Contestant:
    """One trainer with its settings.

    `module` is its file in peers/, `environment` a separate Python for it (race/environment.py), and `needs` a package
    without which it cannot run. Only the `quick` contestants run with --quick.
    """

    name: str
    module: str
    options: dict[str, Any] = field(default_factory=dict)
    environment: str | None = None
    needs: str | None = None
    devices: tuple[str, ...] = ("cpu", "mps", "cuda")
    quick: bool = False
    fp32_file: bool = False  # trains in the dtype of the weight files, so it gets an fp32 copy
    usual: bool = True  # runs if --only is not given

    @property
    def python(self) -> Path:
        """Return the Python executable that runs this contestant."""
        return Path(sys.executable) if self.environment is None else python_of(self.environment)

    def absent(self) -> str | None:
        """Return why the contestant cannot run here, or None if it can."""
        if self.environment is not None and not self.python.is_file():
            return f"its environment {self.environment} is not built"
        if self.needs is not None and importlib.util.find_spec(self.needs) is None:
            return f"the package {self.needs} is not installed"
        return None


PLAIN = {"recompute": False, "batch_size": 4, "sorted": True}  # the fastest settings with padding
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
    # Variants of lorafit that show the cost of one choice, for example: --only "lorafit default"
    Contestant("lorafit default", OWN, {"allocator": "default"}, usual=False),
    Contestant("lorafit trimmed", OWN, {"allocator": "lean"}, usual=False),
    Contestant("lorafit bf16", OWN, {"token_budget": 512, "recompute": 999, "precision": "bf16"}, usual=False),
]


def chosen(device: str, quick: bool, only: list[str], reference: str = REFERENCE) -> list[Contestant]:
    """Return the contestants to run on `device`, the reference first.

    Raise SystemExit if `only` or `reference` names an unknown contestant.
    """
    if unknown := {*only, reference} - {c.name for c in CONTESTANTS}:
        raise SystemExit(
            f"--only: nobody is called {', '.join(sorted(unknown))}: known are {', '.join(c.name for c in CONTESTANTS)}"
        )
    here = [c for c in CONTESTANTS if device in c.devices]
    here.sort(key=lambda c: c.name != reference)
    if only:
        return [c for c in here if c.name in only or c.name == reference]
    return [c for c in here if (c.quick if quick else c.usual)]
