"""Statistics of the data for the planner: token lengths, share of tokens in the loss, micro-batch shapes of steps."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lorafit.data.batching import group_by_budget, shard_by_tokens
from lorafit.data.dataset import PreparedData
from lorafit.data.shared_prefix import find_shared_prefixes, prefix_lengths
from lorafit.hashing import permutation
from lorafit.planner.speed import MicroBatchShape

SAMPLED_STEPS = 24  # steps that are split to compare token budgets
SAMPLED_VALID_ROWS = 400  # validation rows that are split to estimate the time of an evaluation


@dataclass(frozen=True)
class DataStats:
    """Token lengths of all samples and what the planner derives from the samples.

    `target_share`: share of all tokens that are in the loss. `digest`: hash of the prepared data. `source`: origin of the
    lengths, for the user. `shared_tokens`: tokens of a sample that belong to a prefix shared within its step (for example the
    system prompt), on average. `resident_prefix_tokens`: tokens of all shared prefixes of a step, which stay in memory during the step.
    `shared_tokens` and `resident_prefix_tokens` are 0 where unknown.
    """

    train_lengths: NDArray[np.integer]
    valid_lengths: NDArray[np.integer]
    digest: str
    target_share: float = 0.7
    source: str = ""
    shared_tokens: int = 0
    resident_prefix_tokens: int = 0

    @property
    def without_shared_prefixes(self) -> "DataStats":
        """The same statistics for an engine that does not share prefixes."""
        return replace(self, shared_tokens=0, resident_prefix_tokens=0)

    def unshared_tokens(self, lengths: NDArray[np.integer]) -> NDArray[np.integer]:
        """Return the tokens of each sample outside the shared prefix, at least 1."""
        own: NDArray[np.integer] = np.maximum(lengths - self.shared_tokens, 1)
        return own

    @property
    def longest(self) -> int:
        """Tokens of the longest training sample."""
        return int(self.train_lengths.max())

    @property
    def longest_of_all(self) -> int:
        """Tokens of the longest training or validation sample."""
        return max(self.longest, int(self.valid_lengths.max(initial=0)))


def target_share(data: DataStats) -> float:
    """Return the share of computed tokens that are in the loss.

    Tokens of the shared prefix are left out: they are computed once per step and weigh little.
    """
    mean = float(data.train_lengths.mean())
    return min(1.0, data.target_share * mean / max(mean - data.shared_tokens, 1.0))


@dataclass(frozen=True)
class Split:
    """How a step of `samples` is divided: over `processes`, then into micro-batches within both limits."""

    samples: int
    token_budget: int
    max_samples: int
    processes: int = 1


def training_shapes(data: DataStats, how: Split, seed: int, most: int = SAMPLED_STEPS) -> list[list[MicroBatchShape]]:
    """Return the micro-batch shapes of the first steps of a run, at most `most` steps.

    A shared prefix is an extra micro-batch, once per step. With several processes, the list holds the micro-batches of the
    process with the most tokens, since the others wait for it. `data.shared_tokens` is 0 if the engine does not share prefixes.
    """
    order = permutation(seed, 0, len(data.train_lengths))
    whole = max(min(len(order) // how.samples, most), 1) * how.samples
    steps = [order[i : i + how.samples] for i in range(0, whole, how.samples)]
    return [_shares(_slowest(data.train_lengths[step], data, how.processes), data, how) for step in steps]


def _slowest(lengths: NDArray[np.integer], data: DataStats, processes: int) -> NDArray[np.integer]:
    """Return the lengths of the samples on the process with the most tokens."""
    if processes == 1:
        return lengths
    shares = shard_by_tokens(data.unshared_tokens(lengths).tolist(), processes)
    return max((lengths[share] for share in shares), key=lambda own: int(own.sum()))


def validation_shapes(data: DataStats, token_budget: int) -> tuple[list[MicroBatchShape], float]:
    """Return the micro-batch shapes of an evaluation, and the factor that scales them to all validation rows.

    The shapes cover the first SAMPLED_VALID_ROWS rows. Without validation rows the result is ([], 0.0).
    """
    lengths = data.valid_lengths
    if not len(lengths):
        return [], 0.0
    some = lengths[:SAMPLED_VALID_ROWS]
    return _shares(some, data, Split(0, token_budget, len(some))), float(lengths.sum() / some.sum())


def _shares(lengths: NDArray[np.integer], data: DataStats, how: Split) -> list[MicroBatchShape]:
    data = data if len(lengths) > 1 else data.without_shared_prefixes
    sizes, shared, held = data.unshared_tokens(lengths).tolist(), data.shared_tokens, data.resident_prefix_tokens
    shares = [MicroBatchShape(held, 0, held * shared)] if held else []
    for group in group_by_budget(sizes, max(how.token_budget - held, 1), how.max_samples):
        whole = [sizes[i] + shared for i in group]
        # Own tokens attend to the shared prefix: the attention of a whole sample minus that within the prefix.
        squares = sum(length**2 - shared**2 for length in whole)
        shares.append(MicroBatchShape(sum(sizes[i] for i in group), round(sum(whole) * data.target_share), squares))
    return shares


SAMPLED_PREFIX_ROWS = 16  # rows that are searched for shared prefixes


MAX_PREFIX_TOKENS = 1024  # tokens of shared prefixes that fit beside a usual micro-batch


def data_stats(data: PreparedData) -> DataStats:
    """Return the statistics of prepared data."""
    share = data.total_targets / max(data.total_tokens, 1)
    some = [data.train[row] for row in range(min(len(data.train), SAMPLED_PREFIX_ROWS))]
    found = find_shared_prefixes(some, MAX_PREFIX_TOKENS)
    shared, held = round(sum(prefix_lengths(found, len(some))) / len(some)), sum(begun.length for begun in found)
    return DataStats(data.train.lengths, data.valid.lengths, data.digest, share, "", shared, held)
