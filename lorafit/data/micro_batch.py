"""Input of an engine: samples, and micro-batches of samples without padding.

Dimensions: T tokens, S samples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class Sample:
    """One conversation as tokens: `input_ids` [T] int32, `target_mask` [T] bool (True: the token is in the loss).

    The first token is never a target, because no earlier token predicts it.
    """

    input_ids: Int32
    target_mask: Bool

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        return int(self.target_mask.sum())


@dataclass(frozen=True)
class MicroBatch:
    """Part of a step, padding-free: several samples end to end.

    `input_ids`, `target_mask`, `position_ids` [T]; `segments` [S+1]: cumulative lengths, from 0 to T;
    `sample_ids` [S]: rows of the data set; `index_in_step` [S]: the key of a sample's dropout;
    `shared` [S]: number of leading tokens that each sample shares with other samples of its step.
    """

    input_ids: Int32
    target_mask: Bool
    position_ids: Int32
    segments: Int32
    sample_ids: Int32
    index_in_step: Int32
    shared: Int32

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        return int(self.target_mask.sum())

    def parts(self, packed: bool) -> Iterator["MicroBatch"]:
        """Yield the micro-batch itself if `packed`, else each of its samples alone."""
        if packed:
            yield self
            return
        for index in range(len(self.sample_ids)):
            yield self.single_sample(index)

    def single_sample(self, index: int) -> "MicroBatch":
        """Return the micro-batch that holds only sample `index` of this micro-batch."""
        start, end = self.segments[index : index + 2]
        part, one = slice(start, end), slice(index, index + 1)
        ends = np.asarray([0, end - start], np.int32)
        ids, mask, positions = self.input_ids[part], self.target_mask[part], self.position_ids[part]
        return MicroBatch(ids, mask, positions, ends, self.sample_ids[one], self.index_in_step[one], self.shared[one])

    def shared_prefix_bytes(self) -> list[bytes]:
        """Return the shared prefix of each sample as the bytes of its token ids, empty if the sample shares none."""
        starts = zip(self.segments[:-1].tolist(), self.shared.tolist(), strict=True)
        return [self.input_ids[start : start + length].tobytes() for start, length in starts]


def pack(
    samples: Sequence[Sample], sample_ids: Sequence[int], places: Sequence[int], shared: Sequence[int] | None = None
) -> MicroBatch:
    """Return the micro-batch that holds `samples` end to end, in the order given. `shared` None: no shared prefixes."""
    lengths = [len(sample) for sample in samples]
    return MicroBatch(
        input_ids=np.concatenate([s.input_ids for s in samples]).astype(np.int32),
        target_mask=np.concatenate([s.target_mask for s in samples]),
        position_ids=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        segments=np.cumsum([0, *lengths]).astype(np.int32),
        sample_ids=np.asarray(sample_ids, np.int32),
        index_in_step=np.asarray(places, np.int32),
        shared=np.asarray([0] * len(samples) if shared is None else shared, np.int32),
    )
