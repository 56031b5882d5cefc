"""What must the planner know of the data? Lengths, the share of targets, and how steps split into micro-batches."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lorafit.data.batching import shard_by_tokens, split
from lorafit.data.dataset import PreparedData
from lorafit.data.shared_prefix import find_shared_prefixes, prefix_lengths
from lorafit.hashing import permutation
from lorafit.planner.speed import MicroBatchShape

STEPS_LOOKED_AT = 24  # steps, to tell which split is faster
VALID_LOOKED_AT = 400  # rows that are split into micro-batches to tell an evaluation's time


@dataclass(frozen=True)
class DataStats:
    """Tokens of each sample, the share of all tokens that carry loss, and a digest of all of them; `source` in words.

    A sample begins with `shared` tokens (a template's system part) that others of its step begin with too, on average; all
    such beginnings of a step are `held` tokens, in memory throughout. 0 where that is not known.
    """

    train_lengths: NDArray[np.integer]
    valid_lengths: NDArray[np.integer]
    digest: str
    target_share: float = 0.7
    source: str = ""
    shared: int = 0
    held: int = 0

    @property
    def alone(self) -> "DataStats":
        """The same, where everything is computed for every sample."""
        return replace(self, shared=0, held=0)

    def own(self, lengths: NDArray[np.integer]) -> NDArray[np.integer]:
        """Tokens of samples that are computed for each of them."""
        own: NDArray[np.integer] = np.maximum(lengths - self.shared, 1)
        return own

    @property
    def longest(self) -> int:
        return int(self.train_lengths.max())


def target_share(data: DataStats) -> float:
    """Targets over the rows that are computed: what samples share is among them once, which counts for little."""
    mean = float(data.train_lengths.mean())
    return min(1.0, data.target_share * mean / max(mean - data.shared, 1.0))


@dataclass(frozen=True)
class Split:
    """How a step of `samples` is taken apart: over `processes`, then into micro-batches."""

    samples: int
    token_budget: int
    max_samples: int
    processes: int = 1


def steps_as_shares(data: DataStats, how: Split, seed: int, most: int = STEPS_LOOKED_AT) -> list[list[MicroBatchShape]]:
    """The micro-batches of at most so many steps, those a run begins with; what samples share comes once a step.

    Of several processes' the ones of that which has most to do: the others wait for it. `data.shared` is 0 where the
    engine computes it for every sample.
    """
    order = permutation(seed, 0, len(data.train_lengths))
    whole = max(min(len(order) // how.samples, most), 1) * how.samples
    steps = [order[i : i + how.samples] for i in range(0, whole, how.samples)]
    return [_shares(_slowest(data.train_lengths[step], data, how.processes), data, how) for step in steps]


def _slowest(lengths: NDArray[np.integer], data: DataStats, processes: int) -> NDArray[np.integer]:
    """The samples of the process that is dealt the most tokens."""
    if processes == 1:
        return lengths
    shares = shard_by_tokens(data.own(lengths).tolist(), processes)
    return max((lengths[share] for share in shares), key=lambda own: int(own.sum()))


def as_shares(data: DataStats, token_budget: int) -> tuple[list[MicroBatchShape], float]:
    """Validation rows in micro-batches, as an evaluation takes them; of many the first, and how many times that all are."""
    lengths = data.valid_lengths
    if not len(lengths):
        return [], 0.0
    some = lengths[:VALID_LOOKED_AT]
    return _shares(some, data, Split(0, token_budget, len(some))), float(lengths.sum() / some.sum())


def _shares(lengths: NDArray[np.integer], data: DataStats, how: Split) -> list[MicroBatchShape]:
    data = data if len(lengths) > 1 else data.alone
    sizes, shared, held = data.own(lengths).tolist(), data.shared, data.held
    shares = [MicroBatchShape(held, 0, held * shared)] if held else []
    for group in split(sizes, max(how.token_budget - held, 1), how.max_samples):
        whole = [sizes[i] + shared for i in group]
        # Own rows attend to the shared ones too: all that a whole sample's would, but for the shared rows' own.
        squares = sum(length**2 - shared**2 for length in whole)
        shares.append(MicroBatchShape(sum(sizes[i] for i in group), round(sum(whole) * data.target_share), squares))
    return shares


LOOKED_AT = 16  # rows whose beginnings are compared


MOST_HELD = 1024  # tokens of beginnings that a usual micro-batch has room beside


def data_stats(data: PreparedData) -> DataStats:
    """What the planner must know of prepared data."""
    share = data.total_targets / max(data.total_tokens, 1)
    some = [data.train[row] for row in range(min(len(data.train), LOOKED_AT))]
    found = find_shared_prefixes(some, MOST_HELD)
    shared, held = round(sum(prefix_lengths(found, len(some))) / len(some)), sum(begun.length for begun in found)
    return DataStats(data.train.lengths, data.valid.lengths, data.digest, share, "", shared, held)
