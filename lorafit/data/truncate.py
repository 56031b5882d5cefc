"""What goes when a sample is too long? Never the answer while there is a question left to shorten.

The middle of what the others said goes first, the longest first: a question's beginning and end tell most, the
template's markers stay, and the turns keep their order. Only when that is not enough is the end cut off, where the
answer's last tokens are. Whole older turns are not dropped: they hold targets too.

Letters: T tokens.
"""

import numpy as np
from numpy.typing import NDArray

from lorafit.data.micro_batch import Bool

LEAST = 32  # tokens of a text that stay, half of them at each end


def keep(mask_T: Bool, offsets_T2: NDArray[np.int64], contents: list[tuple[int, int]], max_length: int) -> Bool:
    """Which tokens stay, [T]: at most `max_length`."""
    kept_T, begins_T = np.ones(len(mask_T), np.bool_), offsets_T2[:, 0]
    excess = len(mask_T) - max_length
    for start, stop in sorted(_runs(offsets_T2, contents), key=lambda run: run[0] - run[1]):
        cut = min(excess, stop - start - LEAST)
        if cut > 0:
            first = start + (stop - start - cut) // 2
            last = first + cut
            while first > start and begins_T[first] == begins_T[first - 1]:  # a character of several tokens
                first -= 1
            while last < stop and begins_T[last] == begins_T[last - 1]:
                last += 1
            kept_T[first:last] = False
            excess -= last - first
    kept_T &= np.cumsum(kept_T) <= max_length
    return kept_T


def _runs(offsets_T2: NDArray[np.int64], contents: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """First token and the one behind the last whose characters all lie in each of `contents`."""
    begins_T, ends_T = offsets_T2[:, 0], offsets_T2[:, 1]
    runs = []
    for begin, end in contents:
        inside = np.flatnonzero((begins_T >= begin) & (ends_T <= end) & (ends_T > begin))
        if len(inside):
            runs.append((int(inside[0]), int(inside[-1]) + 1))
    return runs
