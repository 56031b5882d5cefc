"""Errors of the plan against measurements, and the constants that would fit one half of the measurements."""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from lorafit.models.demo import demo_model
from lorafit.models.spec import read_spec
from lorafit.planner.memory import Layout, activation_bytes
from race.shapes import shape_folder

Row = dict[str, Any]
MEDIAN, WORST, UNDER = 0.04, 0.10, 0.03  # goals for the errors of peak memory


def error(row: Row) -> float:
    """Return predicted over measured peak memory, minus one; below 0 the prediction is too low."""
    return float(row["predicted_bytes"] / row["peak_bytes"] - 1)


def halves(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Split `rows` in two: every second configuration fits the constants, the others are reported."""
    return rows[::2], rows[1::2]


def summary(rows: list[Row], wanted: int) -> dict[str, Any]:
    """Return the flat figures of the benchmark: errors over the half that no constant was fitted on.

    `ok` needs all three goals and `wanted` configurations.
    """
    errors = [error(row) for row in halves(rows)[1]]
    if not errors:
        return {"ok": False, "configurations": len(rows)}
    median, worst = statistics.median(map(abs, errors)), max(map(abs, errors))
    under = max(0.0, -min(errors))
    good = median <= MEDIAN and worst <= WORST and under <= UNDER
    return {
        "ok": good and len(rows) >= wanted,
        "configurations": len(rows),
        "median_error": round(median, 4),
        "worst_error": round(worst, 4),
        "worst_under": round(under, 4),
    }


def slack(row: Row) -> float:
    """Return the measured peak minus all predicted terms except the allocator's, in bytes."""
    return float(row["peak_bytes"] - sum(size for name, size in row["terms"].items() if name != "allocator"))


def bytes_saved_by_recompute(row: Row) -> int:
    """Return the bytes of activations that gradient checkpointing saves."""
    spec = read_spec(demo_model() if row["model"] == "demo" else shape_folder(row["model"]))
    layout = Layout(
        "cpu", row["precision"], row["quantization"], "adamw", row["lora_r"], "all-linear", row["token_budget"],
        row["longest"], 0, 0, path=row["path"],
    )  # fmt: skip
    return max(0, activation_bytes(spec, layout) - row["terms"]["activations"]) if row["recompute"] else 0


def _slack_name(row: Row) -> str:
    """Return the name of the constants in planner/memory.py that give the slack of `row`."""
    eight = ", 8bit" if row["quantization"] == "8bit" else ""
    return f"{row['allocator']}, {row['path']}{eight}"


def constants(rows: list[Row]) -> dict[str, list[float]]:
    """Fit the slack constants of planner/memory.py by least squares.

    For each allocator profile and path, return a constant in MiB, a share of the activations that layers keep, and a
    share of those that gradient checkpointing saves.
    """
    found = {}
    for name in sorted(set(map(_slack_name, rows))):
        those = [row for row in rows if _slack_name(row) == name]
        kept = np.array([row["terms"]["activations"] for row in those], float)
        terms = np.stack([np.full_like(kept, 2**20), kept, [bytes_saved_by_recompute(row) for row in those]], 1)
        weights = 1 / np.array([row["peak_bytes"] for row in those], float)  # so that errors are relative
        rest = np.array([slack(row) for row in those])
        found[name] = np.linalg.lstsq(terms * weights[:, None], rest * weights, rcond=None)[0].tolist()
    return found


def speed_error(row: Row) -> float | None:
    """Return predicted over measured seconds, minus one, or None without data.

    The seconds are those of a whole run after its preflight, else of a step. Both sides are multiplied by the speed of
    a matmul timed beside them, because load from other processes slows it as it slows the steps.
    """
    steps = list(zip(row["step_seconds"], row["step_gflops"], strict=True))[1:]
    if not steps or not row["predicted_step_seconds"]:
        return None
    beside = mean_gflops(steps)
    if row["kind"] == "run":
        return float(row["predicted_seconds"] * row["rehearsed_gflops"] / (row["whole_seconds"] * beside) - 1)
    took = sum(seconds for seconds, _gflops in steps) / len(steps)
    return float(row["predicted_step_seconds"] * row["plan_gflops"] / (took * beside) - 1)


def mean_gflops(timed: Sequence[tuple[float, float]]) -> float:
    """Return the mean GFLOP/s of the matmuls timed beside passes or steps, weighted by seconds.

    `timed` holds (seconds of the pass or step, GFLOP/s of the matmul).
    """
    return sum(seconds * gflops for seconds, gflops in timed) / sum(seconds for seconds, _gflops in timed)
