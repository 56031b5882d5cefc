"""Checks of a disturbed run against the undisturbed one, and the cost of supervising and saving.

If the plan did not change, the bytes must be equal; otherwise the tolerances below apply.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from faults.training import NotSurvived, Training
from lorafit.events import EvalDone, Restarted, Saved, Shrunk, StepDone
from lorafit.planner.plan import COMPUTATION_FIELDS
from lorafit.run_folders.directory import RunDir

LOSS_TOLERANCE, B_TOLERANCE = 1e-5, 1e-3  # relative; by norm (docs/architecture.md, "The law")


def check(training: Training, wanted: RunDir, smaller: Callable[[int], RunDir]) -> None:
    """Raise NotSurvived unless `training` ended as `wanted` did.

    The events must have every step once, and no temporary file or folder beside the run's may remain. No worker may have
    been restarted as hung that did not hang. If only the token budget was reduced, and
    only before the first step, the adapter must have the bytes of smaller(token_budget), which started that way.
    """
    run = training.run
    assert run is not None
    steps = [e.step for e in training.of(StepDone)]
    if steps != list(range(1, training.steps + 1)):
        raise NotSurvived(f"steps in the record: {steps}")
    if left := [path.name for path in run.path.rglob(".*")]:
        raise NotSurvived(f"left behind: {left}")
    if beside := [path.name for path in training.output.iterdir() if path != run.path]:
        raise NotSurvived(f"beside the run's folder: {beside}")
    if (hung := training.written(Restarted, '"cause": "hung"')) != training.hangs:
        raise NotSurvived(f"{hung} workers were restarted as hung, and {training.hangs} had hung")
    shrunk = [e for e in training.of(Shrunk) if isinstance(e, Shrunk)]
    if not shrunk and _plan(run) == _plan(wanted):
        if worst := loss_distance(run, wanted):
            raise NotSurvived(f"losses differ by {worst:.1e} with the same plan")
        return _same_bytes(run, wanted)
    if (worst := b_distance(run, wanted)) > B_TOLERANCE:
        raise NotSurvived(f"|dB|/|B| = {worst:.1e}")
    if (worst := loss_distance(run, wanted)) > LOSS_TOLERANCE:
        raise NotSurvived(f"losses differ by {worst:.1e}")
    if shrunk and all(e.step == 0 and e.recompute is None and e.token_budget for e in shrunk):
        _same_bytes(run, smaller(shrunk[-1].token_budget or 0))


def _same_bytes(run: RunDir, wanted: RunDir) -> None:
    if _adapter(run).read_bytes() != _adapter(wanted).read_bytes():
        raise NotSurvived("other bytes in the adapter")


def b_distance(run: RunDir, wanted: RunDir) -> float:
    """Return the norm of the difference of all B matrices, over their norm in `wanted`."""
    one, other = (load_file(_adapter(r)) for r in (run, wanted))
    names = [name for name in other if "lora_B" in name]
    ours, theirs = (np.concatenate([t[name].ravel() for name in names]) for t in (one, other))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def loss_distance(run: RunDir, wanted: RunDir) -> float:
    """Return the largest relative difference of a loss, over steps and evaluations."""
    one, other = (_losses(r) for r in (run, wanted))
    return max(abs(one[key] - other[key]) / abs(other[key]) for key in other)


def overhead(training: Training, samples: list[tuple[int, float, float]]) -> dict[str, Any]:
    """Return CPU seconds of the command (supervisor and reporter) and of the worker, in total and in the steps alone.

    `samples` are (step, CPU seconds of the command's process, CPU seconds of the worker), the newest last.
    """
    first = next(sample for sample in samples if sample[0] >= 2)
    last = samples[-1]
    return {
        "face_cpu_seconds": round(last[1], 2),
        "worker_cpu_seconds": round(last[2], 2),
        "overhead_in_steps": round((last[1] - first[1]) / max(last[2] - first[2], 1e-9), 4),
        "overhead_before_steps_seconds": round(first[1], 2),
    }


def cost_of_saving(training: Training) -> dict[str, Any]:
    """Return seconds and bytes of a checkpoint, and the time of a step after a save relative to other steps."""
    saved = [e for e in training.of(Saved) if isinstance(e, Saved)]
    steps = {e.step: e.seconds for e in training.of(StepDone) if isinstance(e, StepDone)}
    after = [steps[e.step + 1] for e in saved if e.step + 1 in steps]
    others = [seconds for step, seconds in steps.items() if step > 1 and step - 1 not in {e.step for e in saved}]
    return {
        "checkpoint_seconds": round(float(np.median([e.seconds for e in saved])), 4),
        "checkpoint_bytes": int(np.median([e.bytes for e in saved])),
        "checkpoint_share_of_ten_minutes": round(float(np.median([e.seconds for e in saved])) / 600, 6),
        "step_after_save_ratio": round(float(np.median(after) / np.median(others)), 3) if after and others else None,
    }


def _plan(run: RunDir) -> dict[str, Any]:
    """Return the plan fields that decide how the run is computed; other fields, such as predictions, do not count."""
    return {
        name: value for name, value in json.loads(run.plan.read_text("utf-8")).items() if name in COMPUTATION_FIELDS
    }


def _adapter(run: RunDir) -> Path:
    return run.final_model / "adapter_model.safetensors"


def _losses(run: RunDir) -> dict[str, float]:
    """Return the losses by event and step, read from the record: the last event of a step is the valid one."""
    losses = {}
    for line in run.events.read_text("utf-8").splitlines():
        facts = json.loads(line)
        if facts["event"] in (StepDone.name, EvalDone.name):
            losses[f"{facts['event']} {facts['step']}"] = facts["loss"]
    return losses
