"""Random numbers from one counter-based integer hash, the same on every engine.

The functions have no state: a number depends only on its purpose (seed, step, place, position, module, channel). Another
split, rank, engine or restart therefore gives the same numbers. The hash uses only 32-bit multiply, xor and logical
shift, which tensor libraries reproduce in int32 with wrap-around. The values must never change; tests/test_hashing.py
checks some of them.

Letters: T tokens, C channels.
"""

import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

UInt32 = NDArray[np.uint32]

START = 0x9E3779B9  # not zero, because mix() maps 0 to 0 and folding zeros would give 0
MULTIPLIERS = (0x21F0AAAD, 0xD35A2D97)  # found by search: bias 0.107, https://github.com/skeeto/hash-prospector
SHIFTS = (16, 15, 15)
UNIT_BITS = 24  # a float32 holds 24 bits exactly


def mix(words: ArrayLike) -> UInt32:
    """Return a hash of each 32-bit word: a bijection in which an input bit flips half of the output bits on average."""
    x = np.array(words, np.uint32)
    for shift, multiplier in zip(SHIFTS, MULTIPLIERS, strict=False):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(multiplier)
    x ^= x >> np.uint32(SHIFTS[-1])
    return x


def fold(*parts: int | str | NDArray[np.integer]) -> UInt32:
    """Return one word from several, in order; arrays broadcast.

    Integers are taken modulo 2**32, strings as the CRC-32 of their UTF-8.
    """
    folded = np.array(START, np.uint32)
    for part in parts:
        folded = mix(folded ^ _word(part))
    return folded


def uniform(key: int, n: int) -> NDArray[np.float32]:
    """Return `n` numbers in [0, 1), multiples of 2**-24, that depend only on `key`."""
    inner = mix(_word(key) ^ np.arange(n, dtype=np.uint32))
    # The key is added again because keys that differ only in low bits have the same set of first words.
    bits = mix(inner + fold(key)) >> np.uint32(32 - UNIT_BITS)
    return bits.astype(np.float32) * np.float32(2.0**-UNIT_BITS)


def permutation(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """Return the order of `n` rows in `epoch`: sorted by the hash of (seed, epoch, row).

    The hash has no ties because mix() is a bijection.
    """
    return np.argsort(fold(seed, epoch, np.arange(n, dtype=np.uint32))).astype(np.int64)


def dropout_row_keys(seed: int, step: int, places: NDArray[np.integer], positions: NDArray[np.integer]) -> UInt32:
    """Return the keys [T] of a micro-batch's tokens.

    `places` [T]: the place of the token's sample in the step. `positions` [T]: the token's position in its sample.
    """
    return fold("dropout", seed, step, places, positions)


def dropout_threshold(p: float) -> int:
    """Return the threshold of dropout: an input is kept if the upper 24 bits of its hash are at least this value."""
    return round(p * (1 << UNIT_BITS))


def _word(part: int | str | NDArray[np.integer]) -> UInt32:
    if isinstance(part, str):
        return np.array(zlib.crc32(part.encode()), np.uint32)
    if isinstance(part, np.ndarray):
        return part.astype(np.uint32)
    return np.array(int(part) & 0xFFFFFFFF, np.uint32)
