"""What was measured on this machine before? Speeds and peaks over what was predicted, kept in one file of the user's.

Measured speed corrects the time that is told and decides nothing. Measured memory counts only where it was more than
predicted, and in steps of 5%, so that noise does not make two equal runs take different plans. Where memory ran out, the
budget that it came down to is kept as a ceiling.
"""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lorafit.hardware.detect import Machine
from lorafit.models.spec import ModelSpec
from lorafit.paths import cache_folder
from lorafit.planner.memory import Layout

MEMORY_STEP = 0.05
LEARNT = 0.5  # weight of the newest measurement
ROOMIER = 1.1  # times the memory that there was when it ran out, and the ceiling counts no more
SIDE = 768  # of the matrices whose product is timed


@dataclass(frozen=True)
class Measured:
    """Seconds and peak bytes of training over what was predicted, for one way of computing one model's shape."""

    slowness: float
    memory: float | None
    times: int
    when: str  # date


@dataclass(frozen=True)
class Ceiling:
    """Memory ran out above so many tokens at a time, with so many bytes available when the plan was made."""

    tokens: int
    available_bytes: int
    when: str  # date


@dataclass(frozen=True)
class MetalLimit:
    """What Metal let the GPU use of so much memory; the engine asks, a plan has no tensor library to ask with."""

    usable_bytes: int
    memory_bytes: int
    when: str  # date


@dataclass(frozen=True)
class Calibration:
    """All that was measured on one machine. `core_gflops`: its processor's product, all cores together."""

    core_gflops: float | None = None
    measured: dict[str, Measured] = field(default_factory=dict)
    ceilings: dict[str, Ceiling] = field(default_factory=dict)
    metal: MetalLimit | None = None

    def slowness(self, layout: Layout, spec: ModelSpec) -> float | None:
        """Measured over predicted seconds: of this very shape, else the middle one of this way of computing."""
        if exact := self.measured.get(key_of(layout, spec)):
            return exact.slowness
        alike = sorted(m.slowness for key, m in self.measured.items() if key.startswith(_way(layout) + " "))
        return alike[len(alike) // 2] if alike else None

    def memory_factor(self, layout: Layout, spec: ModelSpec) -> float:
        """By how much the predicted peak is multiplied: at least 1, in steps of MEMORY_STEP."""
        exact = self.measured.get(key_of(layout, spec))
        return 1.0 if exact is None else rounded_factor(exact.memory)

    def most_tokens(self, layout: Layout, spec: ModelSpec, available_bytes: int) -> int | None:
        """The largest budget that may be tried; None: memory never ran out, or there is more of it now."""
        found = self.ceilings.get(key_of(layout, spec))
        return found.tokens if found and available_bytes <= ROOMIER * found.available_bytes else None


NOTHING = Calibration()


def rounded_factor(memory: float | None) -> float:
    """A measured peak over the predicted one, as far as it counts."""
    return max(1.0, 1 + math.floor(((memory or 1.0) - 1) / MEMORY_STEP + 1e-9) * MEMORY_STEP)


def _way(layout: Layout) -> str:
    return f"{layout.engine}/{layout.device}/{layout.path}/{layout.precision}/{layout.quantization}"


def key_of(layout: Layout, spec: ModelSpec) -> str:
    """The name of a way of computing a shape: "torch/cpu/fast/fp32/none llama 30x576"."""
    return f"{_way(layout)} {spec.model_type} {spec.layers}x{spec.hidden}"


def file() -> Path:
    """LORAFIT_CALIBRATIONS, or a file in the user's cache."""
    own = os.environ.get("LORAFIT_CALIBRATIONS")
    return Path(own).expanduser().absolute() if own else cache_folder() / "calibrations.json"


def machine_key(machine: Machine) -> str:
    """What must be the same for a measurement to hold."""
    gpus = ", ".join(gpu.name for gpu in machine.gpus)
    return f"{machine.chip}, {machine.cores} cores, {gpus or 'no GPU'}, torch {machine.torch_version}"


def read(path: Path) -> dict[str, Any]:
    """The file's content; empty where it is absent or damaged."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def load_calibration(
    machine: Machine, path: Path | None = None, measure: Callable[[], float] | None = None
) -> Calibration:
    """What was measured on `machine`; a described one has been nowhere. `measure` times its product: the best counts,
    since neighbours can only make it slower. A faster one leaves the seconds as they are that runs were measured to take."""
    if machine.described:
        return NOTHING
    path = path or file()
    facts = read(path).get(machine_key(machine), {})
    before, fresh = facts.get("core_gflops"), None if measure is None else round(measure(), 1)
    gflops = max(filter(None, (before, fresh)), default=None)
    try:
        measured = {key: Measured(**value) for key, value in facts.get("measured", {}).items()}
        ceilings = {key: Ceiling(**value) for key, value in facts.get("ceilings", {}).items()}
        told = MetalLimit(**facts["metal"]) if "metal" in facts else None
    except (TypeError, AttributeError):
        measured, ceilings, told = {}, {}, None
    if gflops is not None and gflops != before:
        times = gflops / (before or gflops)
        measured = {key: _over_faster(key, found, times) for key, found in measured.items()}
        kept = {key: asdict(found) for key, found in measured.items()}
        _write(path, machine, {**facts, "core_gflops": gflops, "measured": kept})
    return Calibration(gflops, measured, ceilings, told)


def _over_faster(key: str, found: Measured, times: float) -> Measured:
    """`found`, where what is predicted for the CPU became so many times shorter."""
    return replace(found, slowness=round(found.slowness * times, 4)) if "/cpu/" in key else found


def note(
    machine: Machine, key: str, slowness: float | None, memory: float | None, path: Path | None = None
) -> None:  # fmt: skip
    """Keep a measurement: speed leans to the newest, memory keeps the largest; `slowness` None: as it was.

    A file that cannot be written is let be.
    """
    path = path or file()
    facts = read(path).get(machine_key(machine), {})
    before = load_calibration(machine, path).measured.get(key)
    today = time.strftime("%Y-%m-%d")
    if slowness is None:
        if before is None:
            return
        slowness = before.slowness
    fresh = Measured(round(slowness, 4), None if memory is None else round(memory, 4), 1, today)
    if before is not None:
        largest = max((m for m in (before.memory, fresh.memory) if m is not None), default=None)
        mixed = before.slowness + LEARNT * (slowness - before.slowness)
        fresh = Measured(round(mixed, 4), largest, before.times + 1, today)
    _write(path, machine, {**facts, "measured": {**facts.get("measured", {}), key: asdict(fresh)}})


def note_ceiling(machine: Machine, key: str, tokens: int, available_bytes: int, path: Path | None = None) -> None:
    """Keep the budget that a run came down to where memory ran out, for equal runs to begin with."""
    path = path or file()
    facts = read(path).get(machine_key(machine), {})
    fresh = Ceiling(tokens, available_bytes, time.strftime("%Y-%m-%d"))
    _write(path, machine, {**facts, "ceilings": {**facts.get("ceilings", {}), key: asdict(fresh)}})


def note_metal(machine: Machine, usable_bytes: int, path: Path | None = None) -> None:
    """Keep what Metal said may be used, for plans."""
    path = path or file()
    told = MetalLimit(usable_bytes, machine.memory_bytes, time.strftime("%Y-%m-%d"))
    _write(path, machine, {**read(path).get(machine_key(machine), {}), "metal": asdict(told)})


def recalled(machine: Machine, known: Calibration) -> Machine:
    """`machine` with Metal's figure as it was told before, where there is one and it was of so much memory."""
    told = known.metal
    if told is None or told.memory_bytes != machine.memory_bytes:
        return machine
    facts = {"available_bytes": told.usable_bytes, "told_on": told.when}
    asked = (replace(g, **facts) if g.kind == "mps" and g.available_bytes is None else g for g in machine.gpus)  # type: ignore[arg-type]
    return replace(machine, gpus=tuple(asked))


def _write(path: Path, machine: Machine, facts: dict[str, Any]) -> None:
    content = {**read(path), machine_key(machine): facts}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")
        beside.replace(path)
    except OSError:
        return


def product_gflops() -> float:
    """float32 GFLOP/s of numpy's product on all cores: the best of a few, about a tenth of a second."""
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((SIDE, SIDE), np.float32) for _side in range(2))
    best = math.inf
    for _round in range(6):
        began = time.perf_counter()
        np.matmul(left, right)
        best = min(best, time.perf_counter() - began)
    return 2 * SIDE**3 / best / 1e9
