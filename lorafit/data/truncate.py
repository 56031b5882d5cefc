"""Truncation of a sample that is too long: the longer of question and answer is shortened, or both in proportion.

The room is max_length minus the tokens of the system message and of the template. A side that needs at most half of the
room stays whole, because shortening it would not save the other side. If both sides need more, each keeps the same
share. Of questions, the middle of the longest text is removed: the beginning and end of a question matter most. Of the
sample, the end is removed, where the answer's last tokens are. A system message of more than half of max_length is
shortened like a question. Whole older messages are not removed: they contain targets too.

Dimensions: T tokens.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lorafit.data.micro_batch import Bool

MIN_KEPT_TOKENS = 32  # tokens that stay of each shortened text, half of them at each end
Runs = list[tuple[int, int]]


def truncation_mask(
    mask_T: Bool,
    offsets_T2: NDArray[np.int64],
    questions: Sequence[tuple[int, int]],
    systems: Sequence[tuple[int, int]],
    max_length: int,
) -> Bool:
    """Return a mask [T] of the tokens that stay, at most `max_length`.

    `questions` and `systems` are spans of characters: of the texts that are not learned, and of system messages.
    """
    kept_T, begins_T = np.ones(len(mask_T), np.bool_), offsets_T2[:, 0]
    texts, fixed = _runs(offsets_T2, questions), _runs(offsets_T2, systems)
    if 2 * _total(fixed) > max_length:
        texts, fixed = texts + fixed, []
    excess = question_excess(_total(texts), int(mask_T.sum()), len(mask_T), max_length)
    for start, stop in sorted(texts, key=lambda run: run[0] - run[1]):
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


def question_excess(questions: int, answers: int, tokens: int, max_length: int) -> int:
    """Return how many tokens of the questions are removed from a sample of `tokens` tokens."""
    room = max_length - (tokens - questions - answers)
    if 2 * questions <= room:
        return 0
    if 2 * answers <= room:
        return questions + answers - room
    return questions - max(0, room) * questions // (questions + answers)


def _total(runs: Runs) -> int:
    return sum(stop - start for start, stop in runs)


def _runs(offsets_T2: NDArray[np.int64], spans: Sequence[tuple[int, int]]) -> Runs:
    """Return the first token, and one past the last, of the tokens that lie within each span."""
    begins_T, ends_T = offsets_T2[:, 0], offsets_T2[:, 1]
    runs = []
    for begin, end in spans:
        inside = np.flatnonzero((begins_T >= begin) & (ends_T <= end) & (ends_T > begin))
        if len(inside):
            runs.append((int(inside[0]), int(inside[-1]) + 1))
    return runs
