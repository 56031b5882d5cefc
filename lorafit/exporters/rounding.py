"""Floating-point tensors of weight files in numpy: bytes to float32, rounding to another type, and what a delta loses.

numpy has no bfloat16. Its values are the upper 16 bits of a float32, so they are handled as 16-bit words.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

# Names in safetensors headers -> the numpy type of the stored words.
WORDS: dict[str, type[Any]] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
# Names of `--dtype` and of config.json.
STORED = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
TORCH = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def widened(words: NDArray[Any], dtype: str) -> Float32:
    """Return stored `words` of the type `dtype` as float32. The result may share their memory."""
    if dtype != "BF16":
        return words.astype(np.float32, copy=False)
    return (words.astype(np.uint32) << np.uint32(16)).view(np.float32)


def rounded(values: Float32, dtype: str) -> NDArray[Any]:
    """Return `values` as words of the type `dtype`, rounded to the nearest value, ties to even.

    A value beyond the range of the type becomes infinite.
    """
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return values.astype(WORDS[dtype], copy=False)
    bits = np.ascontiguousarray(values).view(np.uint32)
    up = (bits >> np.uint32(16)) & np.uint32(1)
    up += np.uint32(0x7FFF)
    up += bits
    up >>= np.uint32(16)
    words = up.astype(np.uint16)
    if np.isnan(values).any():
        words[np.isnan(values)] = 0x7FC0
    return words


def projections(weight: Float32, delta: Float32, stored: NDArray[Any], dtype: str) -> tuple[float, float]:
    """Return <q(W + d) - q(W), d> and <d, d> of a block, where q rounds to `dtype` and `stored` is q(W + d)."""
    kept = widened(stored, dtype) - widened(rounded(weight, dtype), dtype)
    flat = delta.reshape(-1)
    return float(np.vdot(kept.reshape(-1), flat)), float(np.vdot(flat, flat))
