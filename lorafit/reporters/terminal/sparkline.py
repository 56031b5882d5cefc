"""A curve as one line of text."""

import itertools
from collections.abc import Sequence

BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Return `values` as bars scaled between minimum and maximum; more than `width` values as means of neighbors."""
    if not values:
        return ""
    cells = _means(values, width) if len(values) > width else list(values)
    low, high = min(cells), max(cells)
    if high == low:
        return BARS[len(BARS) // 2] * len(cells)
    return "".join(BARS[round((cell - low) / (high - low) * (len(BARS) - 1))] for cell in cells)


def _means(values: Sequence[float], width: int) -> list[float]:
    edges = [round(cell * len(values) / width) for cell in range(width + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
