"""The planner's constants that would fit what card/constants.py measured, beside those in use."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from card.settings import Line
from lorafit.planner import memory, speed, throughput
from lorafit.units import MIB

NEARLY = 0.97  # of the best speed: fewer tokens that reach it are enough
FEWEST = 4  # layouts that a fit needs


@dataclass(frozen=True)
class Constant:
    """A constant of the planner: its name and file, its value now, the value that fits, and from how many lines."""

    name: str
    file: str
    now: str
    fits: str
    lines: int


def constants(lines: Sequence[Line], context_bytes: int | None, device: str) -> list[Constant]:
    """Return the constants of `device` that the lines of the part `constants` determine."""
    done = [line for line in lines if "seconds" in line]
    plain = [line for line in done if line["quantization"] == "none"]
    return [*_of_speed(plain, device), *_of_unpacking(done, plain, device), *_of_memory(plain, context_bytes, device)]


def _of_speed(plain: list[Line], device: str) -> list[Constant]:
    found = []
    if len(plain) >= FEWEST:
        share = throughput.EFFICIENCY["torch", device]
        slow, launch = fitted(plain, throughput.HALF_RATE_TOKENS[device])
        now = throughput.LAUNCH_SECONDS[device]
        found.append(Constant("EFFICIENCY", "throughput.py", f"{share:.2f}", f"{share / slow:.2f}", len(plain)))
        found.append(
            Constant("LAUNCH_SECONDS", "throughput.py", f"{now * 1e3:.2f} ms", f"{launch * 1e3:.2f} ms", len(plain))
        )
    same = [line for line in plain if line["recompute"] == 0 and line["chunk"] == plain[0]["chunk"]]
    if len(same) > 1:
        best = max(line["tokens"] / line["seconds"] for line in same)
        enough = min(line["tokens"] for line in same if line["tokens"] / line["seconds"] >= NEARLY * best)
        found.append(Constant("USEFUL_TOKENS", "search.py", "4096 on CUDA", str(enough), len(same)))
    return found


def fitted(lines: Sequence[Line], half_rate_tokens: float) -> tuple[float, float]:
    """Return the factor of the predicted operations' seconds, and the seconds of a launch, that fit the seconds best.

    The model is that of speed.micro_batch_seconds(). `half_rate_tokens` and the bytes moved are taken as predicted: with one
    model, fewer tokens and more launches cannot be told apart. Errors are relative, so that short passes count as much as
    long ones. No launch takes negative time.
    """
    seconds = np.array([line["seconds"] for line in lines])
    target = np.maximum(seconds - [line["moved_seconds"] for line in lines], 0.1 * seconds) / seconds
    work = np.array([line["flops_seconds"] * (1 + half_rate_tokens / line["tokens"]) for line in lines]) / seconds
    launches = np.array([line["launches"] for line in lines]) / seconds
    slow, launch = np.linalg.lstsq(np.stack([work, launches], 1), target, rcond=None)[0]
    if launch < 0:
        slow, launch = work @ target / (work @ work), 0.0
    return float(slow), float(launch)


def _of_unpacking(done: list[Line], plain: list[Line], device: str) -> list[Constant]:
    """Compare 4-bit passes with the same layouts in 16 bits: what they take longer is the unpacking."""
    ways = {(line["tokens"], line["recompute"], line["chunk"]): line for line in plain}
    slowness = []
    for line in done:
        other = ways.get((line["tokens"], line["recompute"], line["chunk"]))
        if line["quantization"] == "4bit" and other:
            slowness.append((line["seconds"] - other["seconds"]) / line["written_seconds"])
    if not slowness:
        return []
    now = f"{speed.UNPACK_SLOWNESS[device]:.1f}"
    return [Constant("UNPACK_SLOWNESS", "speed.py", now, f"{statistics.median(slowness):.1f}", len(slowness))]


def _of_memory(plain: list[Line], context_bytes: int | None, device: str) -> list[Constant]:
    found = []
    if context_bytes is not None:
        now = f"{memory.BASE_BYTES[device] / MIB:.0f} MiB"
        found.append(Constant("BASE_BYTES", "memory.py", now, f"{context_bytes / MIB:.0f} MiB", 1))
    counted = [line for line in plain if line.get("peak_allocated_bytes")]
    if not counted:
        return found
    shares = [
        (line["peak_reserved_bytes"] - line["peak_allocated_bytes"])
        / (line["terms"]["activations"] + line["terms"]["work"])
        for line in counted
    ]
    now = f"{memory.DEVICE_SLACK[device]:.2f}"
    found.append(Constant("DEVICE_SLACK", "memory.py", now, f"{max(shares):.2f} (largest)", len(shares)))
    kept = [line for line in counted if line["recompute"] == 0]
    works = [(line["peak_allocated_bytes"] - _without_work(line)) / line["layer_bytes"] for line in kept]
    if works:
        fits = f"{statistics.median(works):.1f} ({min(works):.1f} to {max(works):.1f})"
        found.append(Constant("GENERIC_WORK", "memory.py", f"{memory.GENERIC_WORK:.1f}", fits, len(works)))
    return found


def _without_work(line: Line) -> float:
    """Return the predicted bytes of all tensors except the temporaries of one layer."""
    return float(line["predicted_tensor_bytes"] - line["terms"]["work"])
