"""Truncation of a sample that is too long: questions are shortened before answers.

First the middle of non-assistant texts is removed, the longest text first: the beginning and end of a question matter
most. The template's markers stay, and the messages keep their order. If this is not enough, the end of the sample is
removed, where the answer's last tokens are. Whole older messages are not removed: they contain targets too.

Dimensions: T tokens.
"""

import numpy as np
from numpy.typing import NDArray

from lorafit.data.micro_batch import Bool

MIN_KEPT_TOKENS = 32  # tokens that stay of each shortened text, half of them at each end


def truncation_mask(
    mask_T: Bool, offsets_T2: NDArray[np.int64], contents: list[tuple[int, int]], max_length: int
) -> Bool:
    """Return a mask [T] of the tokens that stay, at most `max_length`."""
    kept_T, begins_T = np.ones(len(mask_T), np.bool_), offsets_T2[:, 0]
    excess = len(mask_T) - max_length
    for start, stop in sorted(_runs(offsets_T2, contents), key=lambda run: run[0] - run[1]):
        cut = min(excess, stop - start - MIN_KEPT_TOKENS)
        if cut > 0:
            first = start + (stop - start - cut) // 2
            last = first + cut
            while first > start and begins_T[first] == begins_T[first - 1]:  # removes all tokens of a character
                first -= 1
            while last < stop and begins_T[last] == begins_T[last - 1]:
                last += 1
            kept_T[first:last] = False
            excess -= last - first
    kept_T &= np.cumsum(kept_T) <= max_length
    return kept_T


def _runs(offsets_T2: NDArray[np.int64], contents: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the first token, and one past the last, of the tokens that lie within each span of `contents`."""
    begins_T, ends_T = offsets_T2[:, 0], offsets_T2[:, 1]
    runs = []
    for begin, end in contents:
        inside = np.flatnonzero((begins_T >= begin) & (ends_T <= end) & (ends_T > begin))
        if len(inside):
            runs.append((int(inside[0]), int(inside[-1]) + 1))
    return runs
