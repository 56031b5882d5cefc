"""Low-rank deltas in another form: side by side, or padded to a rank; and whether the other form computes the same.

Letters: O outputs, I inputs, R rank.
"""

from collections.abc import Sequence

import numpy as np

from lorafit.errors import ExportError
from lorafit.exporters.merge import Delta
from lorafit.exporters.rounding import Float32
from lorafit.hashing import uniform
from lorafit.messages import _

MOST_DIFFERENCE = 1e-6  # relative; float32 rounds each number of B by at most 6e-8


def side_by_side(deltas: Sequence[Delta], rank: int | None = None) -> tuple[Float32, Float32]:
    """Return `a` [R,I] and `b` [O,R] whose product b a is the sum of the `deltas`, with the factors of these in b.

    R is `rank`, which zeros fill up; None: the sum of the ranks.
    """
    a = np.concatenate([delta.a for delta in deltas])
    with np.errstate(over="ignore"):
        b = np.concatenate([delta.scale * delta.b.astype(np.float64) for delta in deltas], 1).astype(np.float32)
    more = 0 if rank is None else rank - len(a)
    return np.pad(a, ((0, more), (0, 0))), np.pad(b, ((0, 0), (0, more)))


def difference(name: str, deltas: Sequence[Delta], found: Delta) -> float:
    """Return how far `found` is from the sum of the `deltas` of the layer `name`, on a random input, in float64.

    It is relative to the largest output that the deltas could add up to. Raises ExportError above MOST_DIFFERENCE.
    """
    x = uniform(0, found.a.shape[1]).astype(np.float64) - 0.5
    inner = [delta.a @ x for delta in deltas]
    summed = sum(delta.scale * (delta.b @ y) for delta, y in zip(deltas, inner, strict=True))
    size = sum(abs(delta.scale) * (np.abs(delta.b) @ np.abs(y)) for delta, y in zip(deltas, inner, strict=True))
    far = float(np.abs(found.scale * (found.b @ (found.a @ x)) - summed).max()) / (float(np.max(size)) or 1.0)
    if not far <= MOST_DIFFERENCE:  # true of NaN, too
        raise ExportError(
            _("The rewritten adapter does not compute what the adapters do."),
            where=name,
            found=f"{far:.2g} > {MOST_DIFFERENCE:.0e}",
            fix=_("If a weight is very large, use a smaller one. Otherwise please report it."),
        )
    return far
