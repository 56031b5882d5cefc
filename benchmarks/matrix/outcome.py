"""Outcomes of stages: their state, the text of a cell, and facts; and the limits for errors."""

import re
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafit.errors import LorafitError

LOSS, GRADIENT = 1e-4, 1e-3  # largest relative errors; of the gradient: in the worst tensor, by norm
FAINT = 1e-5  # a gradient whose norm is a smaller part of the largest one is judged by that part


Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a stage.

    `state`: ok, refused (in words), wrong, crash, or absent. `cell`: its text in the table.
    """

    state: str
    cell: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def refused(error: LorafitError, scratch: Path) -> Outcome:
    """Return the outcome of an error for the user, without the paths of this machine."""
    facts = {name: without_paths(getattr(error, name) or "", scratch) for name in ("what", "found", "fix")}
    return Outcome("refused", "no", facts)


def crashed(error: BaseException, scratch: Path) -> Outcome:
    """Return the outcome of an exception that is no error for the user."""
    frames = traceback.extract_tb(error.__traceback__)
    place = next((f for f in reversed(frames) if "/lorafit/" in f.filename), frames[-1])
    text = without_paths(f"{type(error).__name__}: {error}", scratch).splitlines()[0][:300]
    name = "/".join(Path(place.filename).parts[-3:])
    return Outcome("crash", "CRASH", {"error": text, "place": f"{name}:{place.lineno}, {place.name}"})


def without_paths(text: str, scratch: Path) -> str:
    """Return `text` with FOLDER instead of the folder of the models, and without the folders of Python packages."""
    return re.sub(r"\S*/site-packages/", "", text.replace(str(scratch), "FOLDER"))


def compared(loss: float, gradients: Arrays, wanted_loss: float, wanted: Arrays) -> Outcome:
    """Return the errors of loss and gradients; wrong beyond the limits."""
    largest = max(float(np.linalg.norm(gradient)) for gradient in wanted.values())
    off = abs(loss / wanted_loss - 1)
    errors = {name: _distance(gradients[name], wanted[name], largest) for name in wanted}
    worst = max(errors, key=lambda name: errors[name])
    idle = [name.partition(".lora_B.")[0] for name in wanted if ".lora_B." in name and not np.any(wanted[name])]
    facts = {"loss": off, "gradient": errors[worst], "worst": worst, "idle": short_names(idle)}
    good = off <= LOSS and errors[worst] <= GRADIENT
    return Outcome("ok" if good else "wrong", f"{off:.0e}, {errors[worst]:.0e}", facts)


def short_names(modules: Iterable[str]) -> list[str]:
    """Return the names of modules from after the number of their layer on, each once."""
    return sorted({re.sub(r"^.*?\.\d+\.", "", module) for module in modules})


def _distance(found: Any, wanted: Any, largest: float) -> float:
    return float(np.linalg.norm(found - wanted) / max(float(np.linalg.norm(wanted)), FAINT * largest))
