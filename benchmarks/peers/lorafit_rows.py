"""lorafit on a data set of any size, memory-mapped as in a run. Options: rows, tokens (of each row)."""

import tempfile
from pathlib import Path

import numpy as np

from lorafit.data.batching import build_step_batch
from lorafit.data.store import NpyWriter, SampleStore, open_mapped
from lorafit.engines import allocator
from lorafit.planner.planner import DataStats
from lorafit.planner.schedule import step_samples
from peers.lorafit_own import open_engine, plan_for
from peers.protocol import Referee, Task

PART = 10_000  # rows per write
FIRST_ID, LAST_ID = 100, 40_000


def store(folder: Path, rows: int, tokens: int) -> SampleStore:
    """Return a memory-mapped store of random rows; the second half of each row is in the loss."""
    rng, ids_file, mask_file = np.random.default_rng(0), folder / "ids.npy", folder / "mask.npy"
    mask_T = np.arange(tokens) >= tokens // 2
    with NpyWriter(ids_file, np.int32) as ids, NpyWriter(mask_file, np.bool_) as mask:
        for first in range(0, rows, PART):
            count = min(PART, rows - first)
            ids.append(rng.integers(FIRST_ID, LAST_ID, count * tokens, dtype=np.int32))
            mask.append(np.tile(mask_T, count))
    starts, lengths = np.arange(rows, dtype=np.int64) * tokens, np.full(rows, tokens, np.int32)
    return SampleStore(open_mapped(ids_file), open_mapped(mask_file), starts, lengths)


def main() -> None:
    """Train under the control of the race."""
    task = Task.read()
    referee = Referee(task)
    rows, tokens = task.options["rows"], task.options["tokens"]
    with tempfile.TemporaryDirectory(prefix="lorafit-rows-") as folder:
        samples = store(Path(folder), rows, tokens)
        plan = plan_for(task, {}, DataStats(samples.lengths, samples.lengths[:0], ""))
        allocator.set_profile(plan.allocator)
        engine = open_engine(task, plan)
        for step in range(1, len(task.steps) + 1):
            referee.begin()
            chosen = step_samples(plan, step)
            data = build_step_batch(
                samples, chosen, plan.token_budget, plan.max_micro_batch, 1, engine.facts.shares_prefixes
            )
            result = engine.step(step, data.micro_batches, data.num_targets, plan.learning_rate)
            referee.stop()
            referee.report(result.loss_sum / data.num_targets)


if __name__ == "__main__":
    main()
