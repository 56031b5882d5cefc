"""Prefixes that several samples share. An engine may compute such a prefix once for all of them."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorafit.data.micro_batch import Int32, MicroBatch, Sample

MIN_PREFIX_TOKENS = 8  # tokens; a shorter prefix is not worth a forward pass of its own
MIN_EXTRA_SAVED_TOKENS = 64  # tokens that several prefixes must save beyond the savings of one common prefix


@dataclass(frozen=True)
class SharedPrefix:
    """The first `length` tokens of all samples in `members` (indices); none of these tokens predicts a target."""

    length: int
    members: list[int]

    @property
    def saved(self) -> int:
        """The number of tokens that need not be computed again."""
        return self.length * (len(self.members) - 1)


def find_shared_prefixes(samples: Sequence[Sample], most: int) -> list[SharedPrefix]:
    """Return one prefix of all samples, or several prefixes of groups of samples if these save more tokens.

    Several prefixes have at most `most` tokens in total; a single prefix has no limit.
    """
    heads = [_before_targets(sample) for sample in samples]
    # In this order, the samples that share the longest prefixes are neighbors.
    order = sorted(range(len(heads)), key=lambda i: heads[i].tobytes())
    near = [_common(heads[a], heads[b]) for a, b in itertools.pairwise(order)]
    whole = [SharedPrefix(min(near), order)] if near and min(near) >= MIN_PREFIX_TOKENS else []
    enough = sum(b.saved for b in whole) + MIN_EXTRA_SAVED_TOKENS
    if sum(near) < enough:  # no grouping saves more than sum(near)
        return whole
    several = _within(_parts(order, near), most)
    return several if sum(b.saved for b in several) >= enough else whole


def _before_targets(sample: Sample) -> Int32:
    """Return the tokens before the first token that predicts a target; without targets, all tokens but the last."""
    targets = np.flatnonzero(sample.target_mask)
    return sample.input_ids[: int(targets[0]) - 1 if len(targets) else len(sample) - 1]


def _common(a: Int32, b: Int32) -> int:
    length = min(len(a), len(b))
    differs = np.flatnonzero(a[:length] != b[:length])
    return int(differs[0]) if len(differs) else length


def _parts(order: list[int], near: list[int]) -> list[SharedPrefix]:
    """Divide `order` into consecutive groups that save the most tokens, by dynamic programming.

    For each end, the best begin of the last group is chosen, given the best division before it. Groups that share fewer
    than MIN_PREFIX_TOKENS tokens are left out.
    """
    count = len(order)
    saved, begins = np.zeros(count + 1, np.int64), np.zeros(count + 1, np.int64)
    common = np.full(count, np.iinfo(np.int32).max, np.int64)  # length of the prefix shared from each begin to `end`
    for end in range(1, count + 1):
        if end > 1:
            np.minimum(common[: end - 1], near[end - 2], out=common[: end - 1])
        length = np.where(common[:end] >= MIN_PREFIX_TOKENS, common[:end], 0)
        total = saved[:end] + length * (end - 1 - np.arange(end))
        begins[end] = total.argmax()
        saved[end] = total[begins[end]]
    parts, end = [], count
    while end > 0:
        begin = int(begins[end])
        parts.append(SharedPrefix(min(near[begin : end - 1], default=0), order[begin:end]))
        end = begin
    return [part for part in parts if part.length >= MIN_PREFIX_TOKENS]


def _within(parts: list[SharedPrefix], most: int) -> list[SharedPrefix]:
    """Return the prefixes that save most, with at most `most` tokens in total; the selection is greedy."""
    kept, held = [], 0
    for part in sorted(parts, key=lambda part: -part.saved):
        if held + part.length <= most:
            kept.append(part)
            held += part.length
    return kept


def prefix_lengths(found: Sequence[SharedPrefix], samples: int) -> list[int]:
    """Return the number of shared tokens of each of the `samples` samples."""
    lengths = [0] * samples
    for beginning in found:
        for member in beginning.members:
            lengths[member] = beginning.length
    return lengths


def repeated_prefixes(micro_batches: Sequence[MicroBatch]) -> list[NDArray[np.int32]]:
    """Return the token ids of each prefix that several samples in `micro_batches` share, each prefix once."""
    found = Counter(beginning for micro in micro_batches for beginning in micro.shared_prefix_bytes())
    return [np.frombuffer(ids, np.int32) for ids, count in found.items() if ids and count > 1]
