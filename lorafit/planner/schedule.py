"""The samples and the learning rate of each step."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lorafit.hashing import permutation
from lorafit.planner.plan import Plan


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, rows: int) -> NDArray[np.int64]:
    return np.asarray(permutation(seed, epoch, rows), np.int64)


def stream_length(plan: Plan) -> int:
    """Return the number of samples that the whole run trains on.

    This is rows x epochs, or steps x effective_batch if max_steps sets another number of steps.
    """
    rows = math.ceil(plan.train_samples * plan.num_epochs)
    return rows if math.ceil(rows / plan.effective_batch) == plan.steps else plan.steps * plan.effective_batch


def step_samples(plan: Plan, step: int) -> list[int]:
    """Return the row numbers of step `step` (from 1): a slice of the stream of epochs, each with its own permutation.

    Slices are consecutive and may cross the end of an epoch. The last slice may be shorter.
    """
    first = (step - 1) * plan.effective_batch
    places = range(first, min(first + plan.effective_batch, stream_length(plan)))
    rows = plan.train_samples
    return [int(_epoch_order(plan.seed, place // rows, rows)[place % rows]) for place in places]


def lr_at(step: int, plan: Plan) -> float:
    """Return the learning rate of step `step` (from 1): linear warmup, then the scheduler; never 0."""
    if step <= plan.warmup_steps:
        return plan.learning_rate * step / plan.warmup_steps
    done = (step - 1 - plan.warmup_steps) / max(plan.steps - plan.warmup_steps, 1)
    shape = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return plan.learning_rate * shape[plan.lr_scheduler]
