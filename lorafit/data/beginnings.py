"""What do several samples begin with? An engine may compute it once for all of them."""

from collections.abc import Sequence

import numpy as np

from lorafit.data.batch import MicroBatch, Sample

FEWEST = 8  # tokens that are worth a pass of their own


def shared_length(samples: Sequence[Sample]) -> int:
    """How many tokens all samples begin with, before the first that predicts a target; 0 where it is not worth it."""
    if len(samples) < 2:
        return 0
    first = samples[0].input_ids
    length = len(first)
    for sample in samples:
        targets = np.flatnonzero(sample.target_mask[: length + 1])
        length = min(length, int(targets[0]) - 1 if len(targets) else len(sample) - 1)
        differs = np.flatnonzero(sample.input_ids[:length] != first[:length])
        length = int(differs[0]) if len(differs) else length
    return length if length >= FEWEST else 0


def samples_of(micro_batches: Sequence[MicroBatch]) -> list[Sample]:
    """The samples that were packed."""
    return [
        Sample(micro.input_ids[begin:end], micro.target_mask[begin:end])
        for micro in micro_batches
        for begin, end in zip(micro.segments[:-1], micro.segments[1:], strict=True)
    ]
