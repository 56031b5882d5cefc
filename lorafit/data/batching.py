"""Which samples does a step learn from, and how are they shared out over processes and micro-batches?

Both are pure functions: no iterator has a state, so a checkpoint needs only the step's number (the law,
docs/architecture.md). The split into micro-batches changes how fast a step runs, never what it learns.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lorafit.data.micro_batch import MicroBatch, Sample, pack
from lorafit.data.shared_prefix import find_shared_prefixes, prefix_lengths


class Samples(Protocol):
    """A data set in memory or mapped from disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


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


def shard_by_tokens(lengths: Sequence[int], ranks: int) -> list[list[int]]:
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
    found = find_shared_prefixes(taken, token_budget - max(map(len, taken), default=0))
    shared = prefix_lengths(found, len(taken))
    lengths = [len(sample) - (length if shares else 0) for sample, length in zip(taken, shared, strict=True)]
    token_budget = max(token_budget - (sum(b.length for b in found) if shares else 0), 1)
    micro_batches, owners = [], []
    for rank, dealt in enumerate(shard_by_tokens(lengths, ranks)):
        for share in split([lengths[i] for i in dealt], token_budget, max_samples):
            places = [dealt[i] for i in share]
            sample_ids, begun = [rows[i] for i in places], [shared[i] for i in places]
            micro_batches.append(pack([taken[i] for i in places], sample_ids, places, begun))
            owners.append(rank)
    totals = sum(m.num_targets for m in micro_batches), sum(m.num_tokens for m in micro_batches)
    return StepBatch(micro_batches, owners, *totals, time.monotonic() - began)
