"""Settings of a part, and what all parts use: the device, plans, and optional packages."""

import importlib.util
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from support.plans import make_plan

from lorafit.engines.base import Setup
from lorafit.engines.torch.engine import TorchEngine
from lorafit.planner.plan import Plan

Line = dict[str, Any]  # one result, as JSON holds it


@dataclass(frozen=True)
class Settings:
    """The device (cuda | cpu), whether models are tiny (for the tests), and the seconds that the part has.

    `scratch` is the folder in which the parts of a run share the models that they write.
    """

    device: str
    tiny: bool
    seconds: float
    scratch: Path

    def plan(self, **changes: Any) -> Plan:
        """Return a plan for the device, with these values."""
        return make_plan(device=self.device, **changes)


@dataclass(frozen=True)
class OnDevice:
    """Opens the PyTorch engine on `device` in `precision`."""

    device: str
    precision: str

    def open(self, folder: Path, plan: Plan | None) -> TorchEngine:
        """Open the model in `folder`."""
        quantization = "none" if plan is None else plan.quantization
        return TorchEngine.open(Setup(folder, folder.name, self.device, self.precision, quantization, plan=plan))


def missing(*packages: str) -> Line | None:
    """Return the line that says which of the packages is not installed, or None if all are there."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return {"left_out": f"not installed: {', '.join(absent)}"} if absent else None


def worded(error: BaseException) -> str:
    """Return an error as one line of at most 300 characters."""
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:300]


def place(error: BaseException) -> str:
    """Return file, line and code of the innermost frame of lorafit in the traceback of `error`, "" if there is none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/lorafit/" in frame.filename]
    return (
        "" if not frames else f"{frames[-1].filename.rpartition('/lorafit/')[2]}:{frames[-1].lineno}: {frames[-1].line}"
    )
