"""Growth of cost with length, rows, rank and token budget: time should be linear in tokens, memory constant in rows.

    python benchmarks/growth.py [--quick]

Each point is one process with a warm-up step and a measured step, of random tokens on the demo model. Points that
benchmarks/results/growth.jsonl has for this machine and commit are not measured again. `python benchmarks/page.py`
writes docs/benchmarks.md from it.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lorafit.data.tokenize import usable_cores
from lorafit.models.demo import demo_model
from lorafit.models.spec import read_spec
from peers.protocol import Task
from race.about import machine_facts
from race.child import Child, ContestantFailed
from race.contestants import Contestant
from race.results import GROWTH, append, read

RANK, BUDGET, TOKENS, ROW_TOKENS = 32, 1024, 2048, 64
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
ROWS = (1_000, 10_000, 100_000, 1_000_000)
RANKS = (4, 8, 16, 32, 64, 128)
BUDGETS = (256, 512, 1024, 2048, 4096)
QUICK = {"length": (128, 1024), "rows": (1_000, 100_000), "rank": (8, 64), "budget": (256, 1024)}


@dataclass(frozen=True)
class Point:
    """One measurement: `count` samples of `length` tokens per step; `value` is its position on `axis`."""

    axis: str
    value: int
    length: int = 256
    count: int = 8
    rank: int = RANK
    module: str = "lorafit_own"
    options: dict[str, Any] = field(default_factory=lambda: {"token_budget": BUDGET})


def points(quick: bool) -> Iterator[Point]:
    """Yield the points to measure."""
    every = [
        *(Point("length", n, n, max(TOKENS // n, 1)) for n in LENGTHS),
        *(Point("rows", n, ROW_TOKENS, 16, RANK, "lorafit_rows", {"rows": n, "tokens": ROW_TOKENS}) for n in ROWS),
        *(Point("rank", n, rank=n) for n in RANKS),
        *(Point("budget", n, 256, max(BUDGETS) // 256, options={"token_budget": n}) for n in BUDGETS),
    ]
    return (point for point in every if not quick or point.value in QUICK[point.axis])


def save_samples(path: Path, point: Point) -> None:
    """Write the samples of two steps: random IDs, of which the second half of each sample is in the loss."""
    total = 2 * point.count * point.length
    ids = np.random.default_rng(0).integers(100, 40_000, total, dtype=np.int32)
    targets = np.tile(np.arange(point.length) >= point.length // 2, 2 * point.count)
    np.savez(path, ids=ids, targets=targets, ends=np.arange(1, 2 * point.count + 1) * point.length)


def measure(point: Point, threads: int, folder: Path) -> dict[str, Any]:
    """Return tokens per second and peak memory of the measured step, and seconds to the first. Raises Lost."""
    spec, samples = read_spec(demo_model()), folder / "samples.npz"
    save_samples(samples, point)
    steps = [list(range(point.count)), list(range(point.count, 2 * point.count))]
    gemm = (1024, spec.hidden, spec.intermediate)
    shape = {"lora_r": point.rank, "lora_alpha": 64.0, "learning_rate": 1e-4, "max_length": max(point.length, 512)}
    task = Task(str(demo_model()), str(samples), steps, "cpu", threads, gemm=gemm, options=point.options, **shape)
    child = Child(Contestant(f"{point.axis} {point.value}", point.module), task, folder)
    try:
        child.wait_until_ready()
        first, second = child.step(), child.step()
    finally:
        child.end()
    speed = point.count * point.length / second["seconds"]
    facts = {"tokens_per_second": speed, "gflops": second["gflops"], "peak_bytes": second["peak_bytes"]}
    return {**facts, "first_step_seconds": child.load_seconds + first["seconds"]}


def main() -> None:
    """Measure the missing points and append them to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two points of each kind")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--note", default="", help="words about the circumstances, shown with the figures")
    parser.add_argument("--results", type=Path, default=GROWTH, help="where lines are appended")
    flags = parser.parse_args()
    about = {**machine_facts(), "threads": flags.threads, "note": flags.note}
    have = {(line["axis"], line["value"]) for line in read(flags.results) if line["about"] == about}
    for point in points(flags.quick):
        if (point.axis, point.value) in have:
            continue
        with tempfile.TemporaryDirectory(prefix="lorafit-growth-") as folder:
            try:
                found = measure(point, flags.threads, Path(folder))
            except ContestantFailed as lost:
                print(f"{point.axis} {point.value}: {lost}", file=sys.stderr)
                continue
        append(flags.results, {"axis": point.axis, "value": point.value, "about": about, **found})
        speed, peak = found["tokens_per_second"], found["peak_bytes"] / 1e6
        print(f"{point.axis:7} {point.value:8}  {speed:7.1f} tokens/s  {peak:6.0f} MB", flush=True)


if __name__ == "__main__":
    main()
