"""The dropout mask in numpy, to which the masks of the engines must be equal."""

import numpy as np
from numpy.typing import NDArray

from lorafit.hashing import UNIT_BITS, dropout_threshold, fold, mix


def dropout_keep(row_keys: NDArray[np.uint32], module: str, channels: int, p: float) -> NDArray[np.bool_]:
    """Return the mask [T, C] of the inputs of `module` that dropout `p` keeps, from `row_keys` [T].

    It compares integers, so that rounding cannot differ. An engine scales the kept inputs by 1 / (1 - p).
    """
    rows = mix(row_keys ^ fold(module))
    bits = mix(rows[:, None] ^ np.arange(channels, dtype=np.uint32)) >> np.uint32(32 - UNIT_BITS)
    return bits >= np.uint32(dropout_threshold(p))
