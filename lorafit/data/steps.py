"""Which samples does a step learn from, and how are they shared out over processes and micro-batches?

Both are pure functions: no iterator has a state, so a checkpoint needs only the step's number (the law,
docs/architecture.md). The split into micro-batches changes how fast a step runs, never what it learns.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lorafit.data.batch import MicroBatch, Sample, pack
from lorafit.data.beginnings import beginnings, lengths_of
from lorafit.hashing import permutation
from lorafit.plan.plan import Plan


class Samples(Protocol):
    """A data set in memory or mapped from disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, rows: int) -> NDArray[np.int64]:
    return np.asarray(permutation(seed, epoch, rows), np.int64)


def stream_length(plan: Plan) -> int:
    """Samples that the whole run learns from: rows x epochs, or steps x effective_batch where max_steps asks for more."""
    rows = math.ceil(plan.train_samples * plan.num_epochs)
    return rows if math.ceil(rows / plan.effective_batch) == plan.steps else plan.steps * plan.effective_batch


def step_samples(plan: Plan, step: int) -> list[int]:
    """Row numbers that step `step` (from 1) learns from: a slice of the stream of epochs, each its own permutation.

    Slices are consecutive and may cross an epoch's end; the last takes what is left.
    """
    first = (step - 1) * plan.effective_batch
    places = range(first, min(first + plan.effective_batch, stream_length(plan)))
    rows = plan.train_samples
    return [int(_epoch_order(plan.seed, place // rows, rows)[place % rows]) for place in places]


def split(lengths: Sequence[int], token_budget: int, max_samples: int) -> list[list[int]]:
    """Indices of `lengths` shared out so that each share holds at most `token_budget` tokens and `max_samples` samples.

    First fit, longest first; a sample longer than the budget gets a share of its own.
    """
    shares: list[list[int]] = []
    used: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for number, share in enumerate(shares):
            if used[number] + lengths[index] <= token_budget and len(share) < max_samples:
                share.append(index)
                used[number] += lengths[index]
                break
        else:
            shares.append([index])
            used.append(lengths[index])
    return shares


def deal(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Indices of `lengths` shared out over `ranks`, each with about as many tokens: longest first, to who has fewest."""
    shares: list[list[int]] = [[] for _rank in range(ranks)]
    used = [0] * ranks
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rank = used.index(min(used))
        shares[rank].append(index)
        used[rank] += lengths[index]
    return [sorted(share) for share in shares]


@dataclass(frozen=True)
class StepBatch:
    """A step, ready for the engine: its micro-batches, the rank that each belongs to, and the sums over all of them."""

    micro_batches: Sequence[MicroBatch]
    owners: Sequence[int]
    num_targets: int
    num_tokens: int
    seconds: float = field(default=0.0, compare=False)  # that making it took

    def share(self, rank: int) -> list[MicroBatch]:
        """What `rank` computes; nothing, where a step has fewer samples than there are ranks."""
        return [micro for micro, owner in zip(self.micro_batches, self.owners, strict=True) if owner == rank]


def batch(
    samples: Samples, rows: Sequence[int], token_budget: int, max_samples: int, ranks: int = 1, shares: bool = False
) -> StepBatch:
    """The micro-batches that hold `rows` of `samples`; a sample's place is its index in `rows`.

    Where the engine `shares` what samples begin with, those tokens are in memory once, throughout the step: they count
    in every micro-batch, and in no sample.
    """
    began = time.monotonic()
    taken = [samples[row] for row in rows]
    found = beginnings(taken, token_budget - max(map(len, taken), default=0))
    shared = lengths_of(found, len(taken))
    lengths = [len(sample) - (length if shares else 0) for sample, length in zip(taken, shared, strict=True)]
    token_budget = max(token_budget - (sum(b.length for b in found) if shares else 0), 1)
    micro_batches, owners = [], []
    for rank, dealt in enumerate(deal(lengths, ranks)):
        for share in split([lengths[i] for i in dealt], token_budget, max_samples):
            places = [dealt[i] for i in share]
            sample_ids, begun = [rows[i] for i in places], [shared[i] for i in places]
            micro_batches.append(pack([taken[i] for i in places], sample_ids, places, begun))
            owners.append(rank)
    totals = sum(m.num_targets for m in micro_batches), sum(m.num_tokens for m in micro_batches)
    return StepBatch(micro_batches, owners, *totals, time.monotonic() - began)


def lr_at(step: int, plan: Plan) -> float:
    """Learning rate of step `step` (from 1): a linear rise over warmup_steps, then the schedule; never 0 in a step."""
    if step <= plan.warmup_steps:
        return plan.learning_rate * step / plan.warmup_steps
    done = (step - 1 - plan.warmup_steps) / max(plan.steps - plan.warmup_steps, 1)
    shape = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return plan.learning_rate * shape[plan.lr_scheduler]
