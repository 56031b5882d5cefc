"""How are a million samples kept? End to end in two arrays, each found by its start and length."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorafit.data.batch import Bool, Int32, Sample


@dataclass(frozen=True)
class SampleStore:
    """Many samples in four arrays: sample i is `lengths[i]` tokens from `starts[i]` on. Stores may share tokens."""

    input_ids: Int32
    target_mask: Bool
    starts: NDArray[np.int64]
    lengths: Int32

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        start, length = int(self.starts[index]), int(self.lengths[index])
        return Sample(self.input_ids[start : start + length], self.target_mask[start : start + length])

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def select(self, rows: NDArray[np.int64]) -> "SampleStore":
        """The samples at `rows`, in that order, without a copy of their tokens."""
        return SampleStore(self.input_ids, self.target_mask, self.starts[rows], self.lengths[rows])


def digest(*stores: SampleStore) -> str:
    """sha256 over all samples' lengths, ids and masks in order: whether two runs learn from the same data."""
    sha = hashlib.sha256()
    for store in stores:
        sha.update(np.int64(len(store)).tobytes())
        sha.update(store.lengths.tobytes())
        for sample in store:
            sha.update(sample.input_ids.tobytes())
            sha.update(sample.target_mask.tobytes())
    return sha.hexdigest()
