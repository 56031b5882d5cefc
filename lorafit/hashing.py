"""Where does randomness come from? One counter-based integer hash, the same on every engine.

Nothing here has a state: a number is a function of what it is for (seed, step, place, position, module, channel), so
another split, rank, engine or restart draws the same. Only 32-bit multiply, xor and logical shift are used: tensor
libraries repeat it in int32 with wrap-around. The values are fixed for ever: tests/test_hashing.py holds some of them.

Letters: T tokens, C channels.
"""

import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

UInt32 = NDArray[np.uint32]

START = 0x9E3779B9  # so that folding zeros does not give zero, which mix() leaves as it is
MULTIPLIERS = (0x21F0AAAD, 0xD35A2D97)  # found by search: bias 0.107, https://github.com/skeeto/hash-prospector
SHIFTS = (16, 15, 15)
UNIT_BITS = 24  # a float32 holds 24 bits exactly


def mix(words: ArrayLike) -> UInt32:
    """Each 32-bit word scattered over 32 bits: a bijection in which every input bit flips half of the output bits."""
    x = np.array(words, np.uint32)
    for shift, multiplier in zip(SHIFTS, MULTIPLIERS, strict=False):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(multiplier)
    x ^= x >> np.uint32(SHIFTS[-1])
    return x


def fold(*parts: int | str | NDArray[np.integer]) -> UInt32:
    """One word from several, in order; arrays broadcast. Ints count modulo 2**32, strings by the CRC-32 of their UTF-8."""
    folded = np.array(START, np.uint32)
    for part in parts:
        folded = mix(folded ^ _word(part))
    return folded


def uniform(key: int, n: int) -> NDArray[np.float32]:
    """`n` numbers in [0, 1), multiples of 2**-24, that belong to `key`."""
    inner = mix(_word(key) ^ np.arange(n, dtype=np.uint32))
    # Folding the key in again parts two keys that differ only in low bits: their first words are the same set.
    bits = mix(inner + fold(key)) >> np.uint32(32 - UNIT_BITS)
    return bits.astype(np.float32) * np.float32(2.0**-UNIT_BITS)


def permutation(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The order of `n` rows in `epoch`: by the hash of (seed, epoch, row), which has no ties, since mix() is a bijection."""
    return np.argsort(fold(seed, epoch, np.arange(n, dtype=np.uint32))).astype(np.int64)


def dropout_row_keys(seed: int, step: int, places: NDArray[np.integer], positions: NDArray[np.integer]) -> UInt32:
    """Keys [T] of a micro-batch's tokens, from each one's sample's place in the step [T] and position in its sample [T]."""
    return fold("dropout", seed, step, places, positions)


def dropout_keep(row_keys: UInt32, module: str, channels: int, p: float) -> NDArray[np.bool_]:
    """Which inputs of `module` stay under dropout `p`: [T, C], from `row_keys` [T]. The reference for every engine.

    The comparison is between integers, so that no rounding differs; an engine scales what stays by 1 / (1 - p).
    """
    rows = mix(row_keys ^ fold(module))
    bits = mix(rows[:, None] ^ np.arange(channels, dtype=np.uint32)) >> np.uint32(32 - UNIT_BITS)
    return bits >= np.uint32(dropout_threshold(p))


def dropout_threshold(p: float) -> int:
    """An input stays when the upper 24 bits of its hash are at least this."""
    return round(p * (1 << UNIT_BITS))


def _word(part: int | str | NDArray[np.integer]) -> UInt32:
    if isinstance(part, str):
        return np.array(zlib.crc32(part.encode()), np.uint32)
    if isinstance(part, np.ndarray):
        return part.astype(np.uint32)
    return np.array(int(part) & 0xFFFFFFFF, np.uint32)
