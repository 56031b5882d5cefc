"""What do several samples begin with? An engine may compute it once for all of them."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorafit.data.micro_batch import Int32, MicroBatch, Sample

FEWEST = 8  # tokens that are worth a pass of their own
MORE = 64  # tokens that several beginnings must save beyond what one for all saves


@dataclass(frozen=True)
class SharedPrefix:
    """`length` tokens that all these samples begin with, none of which predicts a target."""

    length: int
    members: list[int]

    @property
    def saved(self) -> int:
        """Tokens that are not computed again."""
        return self.length * (len(self.members) - 1)


def find_shared_prefixes(samples: Sequence[Sample], most: int) -> list[SharedPrefix]:
    """One beginning for all samples; or several, each for some and at most `most` tokens together, where that saves more."""
    heads = [_before_targets(sample) for sample in samples]
    order = sorted(
        range(len(heads)), key=lambda i: heads[i].tobytes()
    )  # so those are neighbours who have most in common
    near = [_common(heads[a], heads[b]) for a, b in itertools.pairwise(order)]
    whole = [SharedPrefix(min(near), order)] if near and min(near) >= FEWEST else []
    enough = sum(b.saved for b in whole) + MORE
    if sum(near) < enough:  # no division saves more than that
        return whole
    several = _within(_parts(order, near), most)
    return several if sum(b.saved for b in several) >= enough else whole


def _before_targets(sample: Sample) -> Int32:
    """The tokens before the first that predicts a target; all but the last where none does."""
    targets = np.flatnonzero(sample.target_mask)
    return sample.input_ids[: int(targets[0]) - 1 if len(targets) else len(sample) - 1]


def _common(a: Int32, b: Int32) -> int:
    length = min(len(a), len(b))
    differs = np.flatnonzero(a[:length] != b[:length])
    return int(differs[0]) if len(differs) else length


def _parts(order: list[int], near: list[int]) -> list[SharedPrefix]:
    """`order` cut so that most is saved: for each end, the best begin of the last part, given the best up to there."""
    count = len(order)
    saved, begins = np.zeros(count + 1, np.int64), np.zeros(count + 1, np.int64)
    common = np.full(count, np.iinfo(np.int32).max, np.int64)  # from each begin up to the end
    for end in range(1, count + 1):
        if end > 1:
            np.minimum(common[: end - 1], near[end - 2], out=common[: end - 1])
        length = np.where(common[:end] >= FEWEST, common[:end], 0)
        total = saved[:end] + length * (end - 1 - np.arange(end))
        begins[end] = total.argmax()
        saved[end] = total[begins[end]]
    parts, end = [], count
    while end > 0:
        begin = int(begins[end])
        parts.append(SharedPrefix(min(near[begin : end - 1], default=0), order[begin:end]))
        end = begin
    return [part for part in parts if part.length >= FEWEST]


def _within(parts: list[SharedPrefix], most: int) -> list[SharedPrefix]:
    """Those that save most, as long as they are at most `most` tokens together."""
    kept, held = [], 0
    for part in sorted(parts, key=lambda part: -part.saved):
        if held + part.length <= most:
            kept.append(part)
            held += part.length
    return kept


def prefix_lengths(found: Sequence[SharedPrefix], samples: int) -> list[int]:
    """How many tokens each of so many samples shares."""
    lengths = [0] * samples
    for beginning in found:
        for member in beginning.members:
            lengths[member] = beginning.length
    return lengths


def begun_alike(micro_batches: Sequence[MicroBatch]) -> list[NDArray[np.int32]]:
    """What several samples in `micro_batches` are said to begin with, each once."""
    found = Counter(beginning for micro in micro_batches for beginning in micro.beginnings())
    return [np.frombuffer(ids, np.int32) for ids, count in found.items() if ids and count > 1]
