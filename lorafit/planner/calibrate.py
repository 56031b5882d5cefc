"""Measurements of earlier runs on this machine: time and peak memory over prediction, kept in one file per user.

Measured speed corrects the predicted time and changes no decision of the planner. Measured memory counts only where it is
above the prediction, rounded down to steps of 5%, so that noise does not give two equal runs different plans. After an
out of memory error, the token budget that worked is kept as a ceiling.
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
from lorafit.paths import cache_folder, user_path
from lorafit.planner.memory import Layout

MEMORY_STEP = 0.05
NEWEST_WEIGHT = 0.5  # weight of the newest measurement in the moving average of `slowness`
CEILING_EXPIRY = 1.1  # a ceiling expires when available memory exceeds this multiple of its `available_bytes`
MATMUL_SIZE = 768  # rows and columns of the matrices in the timed matmul


@dataclass(frozen=True)
class Measured:
    """Measured over predicted values for one way of computing (see `calibration_key`) and one model architecture.

    `slowness`: ratio of seconds. `memory`: ratio of peak bytes, the largest seen; None: not measured. `times`: number of
    measurements.
    """

    slowness: float
    memory: float | None
    times: int
    when: str  # date


@dataclass(frozen=True)
class Ceiling:
    """The token budget that worked after an out of memory error, and the bytes available when that plan was made."""

    tokens: int
    available_bytes: int
    when: str  # date


@dataclass(frozen=True)
class MetalLimit:
    """Bytes that Metal allowed the GPU to use on a Mac with `memory_bytes` of memory.

    The engine reads this limit. The planner loads no tensor library and uses the saved value.
    """

    usable_bytes: int
    memory_bytes: int
    when: str  # date


@dataclass(frozen=True)
class Calibration:
    """All measurements of one machine.

    `core_gflops`: float32 matmul rate of its CPU, all cores together, in GFLOP/s. `calibration_key` makes the keys of both dicts.
    """

    core_gflops: float | None = None
    measured: dict[str, Measured] = field(default_factory=dict)
    ceilings: dict[str, Ceiling] = field(default_factory=dict)
    metal: MetalLimit | None = None

    def slowness(self, layout: Layout, spec: ModelSpec) -> float | None:
        """Return measured over predicted seconds for this layout and architecture, None if nothing is comparable.

        Without an exact match, return the median over the other architectures with the same engine, device, code path,
        precision and quantization.
        """
        if exact := self.measured.get(calibration_key(layout, spec)):
            return exact.slowness
        alike = sorted(m.slowness for key, m in self.measured.items() if key.startswith(_way(layout) + " "))
        return alike[len(alike) // 2] if alike else None

    def memory_factor(self, layout: Layout, spec: ModelSpec) -> float:
        """Return the factor on the predicted peak memory: at least 1, in steps of MEMORY_STEP."""
        exact = self.measured.get(calibration_key(layout, spec))
        return 1.0 if exact is None else round_memory_factor(exact.memory)

    def token_ceiling(self, layout: Layout, spec: ModelSpec, available_bytes: int) -> int | None:
        """Return the largest token budget to try.

        Return None if no out of memory error is known or if more memory is available now.
        """
        found = self.ceilings.get(calibration_key(layout, spec))
        return found.tokens if found and available_bytes <= CEILING_EXPIRY * found.available_bytes else None


NO_CALIBRATION = Calibration()


def round_memory_factor(memory: float | None) -> float:
    """Return measured over predicted peak, rounded down to a step of MEMORY_STEP and at least 1 (None: 1)."""
    return max(1.0, 1 + math.floor(((memory or 1.0) - 1) / MEMORY_STEP + 1e-9) * MEMORY_STEP)


def _way(layout: Layout) -> str:
    return f"{layout.engine}/{layout.device}/{layout.path}/{layout.precision}/{layout.quantization}"


def calibration_key(layout: Layout, spec: ModelSpec) -> str:
    """Return the key of a layout and an architecture, for example "torch/cpu/fast/fp32/none llama 30x576"."""
    return f"{_way(layout)} {spec.model_type} {spec.layers}x{spec.hidden}"


def calibration_file() -> Path:
    """Return the calibration file: $LORAFIT_CALIBRATIONS if set, else calibrations.json in the user's cache."""
    own = os.environ.get("LORAFIT_CALIBRATIONS")
    return user_path(own).absolute() if own else cache_folder() / "calibrations.json"


def machine_key(machine: Machine) -> str:
    """Return the machine's key in the file: a measurement is valid only for the same chip, cores, GPUs and PyTorch."""
    gpus = ", ".join(gpu.name for gpu in machine.gpus)
    return f"{machine.chip}, {machine.cores} cores, {gpus or 'no GPU'}, torch {machine.torch_version}"


def read(path: Path) -> dict[str, Any]:
    """Return the content of the file, or an empty dict if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def load_calibration(
    machine: Machine, path: Path | None = None, measure: Callable[[], float] | None = None
) -> Calibration:
    """Load the measurements of `machine`; a machine described by name has none.

    `measure` times a float32 matmul on the CPU and returns GFLOP/s. The highest rate ever measured counts, since other
    load on the machine only lowers it. When a new maximum shortens the predictions, the CPU's `slowness` values are scaled
    by the same ratio, so that the measured seconds stay the same.
    """
    if machine.described:
        return NO_CALIBRATION
    path = path or calibration_file()
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
    """Return `found` with `slowness` multiplied by `times` if `key` is a CPU's: its predictions are `times` shorter."""
    return replace(found, slowness=round(found.slowness * times, 4)) if "/cpu/" in key else found


def save_measurement(
    machine: Machine, key: str, slowness: float | None, memory: float | None, path: Path | None = None
) -> None:  # fmt: skip
    """Save a measurement: a moving average of `slowness` and the largest `memory` ratio.

    `slowness` None keeps the saved value; without a saved value nothing is written. Write errors are ignored.
    """
    path = path or calibration_file()
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
        mixed = before.slowness + NEWEST_WEIGHT * (slowness - before.slowness)
        fresh = Measured(round(mixed, 4), largest, before.times + 1, today)
    _write(path, machine, {**facts, "measured": {**facts.get("measured", {}), key: asdict(fresh)}})


def save_ceiling(machine: Machine, key: str, tokens: int, available_bytes: int, path: Path | None = None) -> None:
    """Save the token budget that a run fell back to after an out of memory error.

    Later runs with the same key start with this budget. Write errors are ignored.
    """
    path = path or calibration_file()
    facts = read(path).get(machine_key(machine), {})
    fresh = Ceiling(tokens, available_bytes, time.strftime("%Y-%m-%d"))
    _write(path, machine, {**facts, "ceilings": {**facts.get("ceilings", {}), key: asdict(fresh)}})


def save_metal_limit(machine: Machine, usable_bytes: int, path: Path | None = None) -> None:
    """Save the bytes that Metal allows the GPU to use, for later plans. Write errors are ignored."""
    path = path or calibration_file()
    told = MetalLimit(usable_bytes, machine.memory_bytes, time.strftime("%Y-%m-%d"))
    _write(path, machine, {**read(path).get(machine_key(machine), {}), "metal": asdict(told)})


def with_metal_limit(machine: Machine, known: Calibration) -> Machine:
    """Return `machine` with the saved Metal limit, if one exists for the same memory size."""
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


def measure_matmul_gflops() -> float:
    """Return the float32 GFLOP/s of numpy's matmul on all cores: the best of six, in about 0.1 s."""
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((MATMUL_SIZE, MATMUL_SIZE), np.float32) for _side in range(2))
    best = math.inf
    for _round in range(6):
        began = time.perf_counter()
        np.matmul(left, right)
        best = min(best, time.perf_counter() - began)
    return 2 * MATMUL_SIZE**3 / best / 1e9
