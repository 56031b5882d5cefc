"""What must the planner know of the data? Lengths, the share of targets, and how steps split into micro-batches."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorafit.data.steps import split
from lorafit.hashing import permutation
from lorafit.plan.speed import Share

LOOKED_AT = 24  # steps


@dataclass(frozen=True)
class DataFacts:
    """Tokens of each sample, the share of all tokens that carry loss, and a digest of all of them; `source` in words."""

    train_lengths: NDArray[np.integer]
    valid_lengths: NDArray[np.integer]
    digest: str
    target_share: float = 0.7
    source: str = ""

    @property
    def longest(self) -> int:
        return int(self.train_lengths.max())


def steps_as_shares(
    data: DataFacts, effective_batch: int, token_budget: int, max_samples: int, seed: int
) -> list[list[Share]]:
    """The micro-batches of some steps, chosen as a run's first ones are."""
    rows = len(data.train_lengths)
    order = permutation(seed, 0, rows)[: LOOKED_AT * effective_batch]
    steps = [order[i : i + effective_batch] for i in range(0, len(order), effective_batch)]
    return [_shares(data.train_lengths[step], data.target_share, token_budget, max_samples) for step in steps]


def as_shares(lengths: NDArray[np.integer], target_share: float, token_budget: int) -> list[Share]:
    """All of `lengths` in micro-batches, as an evaluation takes them; many rows are taken for equal to their mean."""
    if len(lengths) == 0:
        return []
    return _shares(lengths[:400], target_share, token_budget, len(lengths))


def _shares(lengths: NDArray[np.integer], target_share: float, token_budget: int, max_samples: int) -> list[Share]:
    sizes = [int(length) for length in lengths]
    shares = []
    for group in split(sizes, token_budget, max_samples):
        tokens = sum(sizes[i] for i in group)
        shares.append(Share(tokens, round(tokens * target_share), sum(sizes[i] ** 2 for i in group)))
    return shares
