"""Near-duplicate texts: MinHash signatures of character n-grams, and bands of the signatures that find similar pairs.

The similarity of two texts is the Jaccard index of their sets of n-grams. Character n-grams need no word segmentation,
so Chinese and English are treated alike. Case and white space are ignored. The share of equal places in two signatures
estimates the similarity (Broder 1997). At similarity 0.8 and 128 places, its standard deviation is 0.035. A pair is
compared if its signatures agree in a whole band: 95% of the pairs at similarity 0.8, 99.98% at 0.9 and 6% at 0.5.

Dimensions: G n-grams, K places of a signature, N texts, P pairs.
"""

import numpy as np
from numpy.typing import NDArray

from lorafit.hashing import UInt32, fold

NGRAM_CHARACTERS = 4  # characters per n-gram: a few Chinese words, less than one English word
BANDS, BAND_PLACES = 16, 8
PLACES = BANDS * BAND_PLACES
MIN_SIMILARITY = 0.8
MAX_NEIGHBORS = 8  # comparisons per text within a bucket, so that thousands of copies do not cost quadratic time
CHUNK = 1 << 12  # n-grams hashed at a time: a huge text needs 4 MiB, not 1 GiB

_key_K = fold("twins", np.arange(4 * PLACES, dtype=np.uint32)).astype(np.uint64).reshape(4, PLACES)
_FACTOR_K = (_key_K[0] << np.uint64(32)) | _key_K[1] | np.uint64(1)
_SHIFT_K = (_key_K[2] << np.uint64(32)) | _key_K[3]


def signature(text: str) -> UInt32:
    """Return the MinHash signature [K] of `text`: for each of K hash functions the smallest hash of an n-gram."""
    grams_G = _grams(text)
    least_K = np.full(PLACES, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(grams_G), CHUNK):
        # The arithmetic is modulo 2**64; only the upper half of the result is used.
        hashed = grams_G[start : start + CHUNK, None] * _FACTOR_K + _SHIFT_K
        least_K = np.minimum(least_K, hashed.min(axis=0))
    return (least_K >> np.uint64(32)).astype(np.uint32)


def _grams(text: str) -> NDArray[np.uint64]:
    """Return one hash per n-gram [G], at least one."""
    plain = "".join(text.casefold().split()).ljust(NGRAM_CHARACTERS, "\0")
    codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32)
    last = len(codes) - NGRAM_CHARACTERS + 1
    return fold(*(codes[i : last + i] for i in range(NGRAM_CHARACTERS))).astype(np.uint64)


def near_pairs(signatures_NK: UInt32) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the pairs [P, 2] of texts whose estimated similarity is at least MIN_SIMILARITY, and that [P].

    The pairs are sorted, with the earlier text first in each pair.
    """
    found = [_candidates(band) for band in np.split(signatures_NK, BANDS, axis=1)]
    pairs_P2 = np.unique(np.concatenate(found), axis=0)
    similar_P = np.empty(len(pairs_P2))
    for start in range(0, len(pairs_P2), CHUNK):
        part = slice(start, start + CHUNK)
        one, other = signatures_NK[pairs_P2[part, 0]], signatures_NK[pairs_P2[part, 1]]
        similar_P[part] = (one == other).mean(axis=1)
    kept = similar_P >= MIN_SIMILARITY
    return pairs_P2[kept], similar_P[kept]


def _candidates(band: UInt32) -> NDArray[np.int64]:
    """Return pairs [P, 2] of texts whose signatures agree in all places of `band` [N, places].

    Each text is paired with at most MAX_NEIGHBORS earlier texts.
    """
    key_N = (band * _FACTOR_K[: band.shape[1]]).sum(axis=1, dtype=np.uint64)  # a hash collision costs one comparison
    order = np.argsort(key_N, kind="stable")
    key_N = key_N[order]
    pairs = [np.empty((0, 2), np.int64)]
    for distance in range(1, MAX_NEIGHBORS + 1):
        same = np.flatnonzero(key_N[distance:] == key_N[:-distance])
        pairs.append(np.stack([order[same], order[same + distance]], axis=1))
    return np.concatenate(pairs)
