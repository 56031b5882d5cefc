"""Distribution of the samples of a step over processes and micro-batches.

All functions are pure. No iterator has a state, so a checkpoint needs only the step number (docs/architecture.md).
The split into micro-batches changes the speed of a step, never its result.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lorafit.data.micro_batch import MicroBatch, Sample, pack
from lorafit.data.shared_prefix import find_shared_prefixes, prefix_lengths


class Samples(Protocol):
    """A data set of samples, in memory or mapped from disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def group_by_budget(lengths: Sequence[int], token_budget: int, max_samples: int) -> list[list[int]]:
    """Return the indices of `lengths` in groups of at most `token_budget` tokens and `max_samples` samples.

    The method is first fit, longest sample first. A sample longer than the budget gets a group of its own.
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
    """Return the indices of `lengths` for each of `ranks` processes, with about equal numbers of tokens.

    The samples are assigned longest first, each to the rank with the fewest tokens so far.
    """
    shares: list[list[int]] = [[] for _rank in range(ranks)]
    used = [0] * ranks
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rank = used.index(min(used))
        shares[rank].append(index)
        used[rank] += lengths[index]
    return [sorted(share) for share in shares]


@dataclass(frozen=True)
class StepBatch:
    """A step, ready for the engine.

    `owners` holds the rank of each micro-batch. `num_targets` and `num_tokens` are totals over all micro-batches.
    """

    micro_batches: Sequence[MicroBatch]
    owners: Sequence[int]
    num_targets: int
    num_tokens: int
    build_seconds: float = field(default=0.0, compare=False)  # spent to build the batch

    def for_rank(self, rank: int) -> list[MicroBatch]:
        """Return the micro-batches of `rank`; a rank has none if the step has fewer samples than ranks."""
        return [micro for micro, owner in zip(self.micro_batches, self.owners, strict=True) if owner == rank]


def build_step_batch(
    samples: Samples, rows: Sequence[int], token_budget: int, max_samples: int, ranks: int = 1, shares: bool = False
) -> StepBatch:
    """Return the micro-batches of the step that trains on `rows` of `samples`.

    A sample's entry in `MicroBatch.places` is its index in `rows`. If the engine `shares` prefixes, their tokens are in
    memory once, for the whole step. They reduce the token budget of every micro-batch and count in no sample.
    """
    began = time.monotonic()
    taken = [samples[row] for row in rows]
    found = find_shared_prefixes(taken, token_budget - max(map(len, taken), default=0))
    shared = prefix_lengths(found, len(taken))
    lengths = [len(sample) - (length if shares else 0) for sample, length in zip(taken, shared, strict=True)]
    token_budget = max(token_budget - (sum(b.length for b in found) if shares else 0), 1)
    micro_batches, owners = [], []
    for rank, dealt in enumerate(shard_by_tokens(lengths, ranks)):
        for share in group_by_budget([lengths[i] for i in dealt], token_budget, max_samples):
            places = [dealt[i] for i in share]
            sample_ids, begun = [rows[i] for i in places], [shared[i] for i in places]
            micro_batches.append(pack([taken[i] for i in places], sample_ids, places, begun))
            owners.append(rank)
    totals = sum(m.num_targets for m in micro_batches), sum(m.num_tokens for m in micro_batches)
    return StepBatch(micro_batches, owners, *totals, time.monotonic() - began)
