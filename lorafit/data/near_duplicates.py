"""Which texts say nearly the same? MinHash signatures of character n-grams, and bands of them that find the close pairs.

Two texts are as similar as the share of their different n-grams that both have (Jaccard). Characters need no words, so
Chinese is treated as English is; case and white space do not count. Two signatures agree in a share of their places
that estimates the similarity (Broder 1997): at 0.8, with 128 places, within 0.035 (one standard deviation). A pair is
looked at when a whole band agrees, which 95% of the pairs at 0.8 do, 99.98% at 0.9, and 6% at 0.5.

Letters: G n-grams, K places of a signature, N texts, P pairs.
"""

import numpy as np
from numpy.typing import NDArray

from lorafit.hashing import UInt32, fold

GRAM = 4  # characters: a few Chinese words, less than one English word
BANDS, BAND_PLACES = 16, 8
PLACES = BANDS * BAND_PLACES
SIMILAR = 0.8
NEIGHBOURS = 8  # texts of one band's value are compared with so many before them: thousands of copies cost no square
CHUNK = 1 << 12  # n-grams hashed at once: a huge text costs 4 MiB, not a gigabyte

_key_K = fold("twins", np.arange(4 * PLACES, dtype=np.uint32)).astype(np.uint64).reshape(4, PLACES)
_FACTOR_K = (_key_K[0] << np.uint64(32)) | _key_K[1] | np.uint64(1)
_SHIFT_K = (_key_K[2] << np.uint64(32)) | _key_K[3]


def signature(text: str) -> UInt32:
    """MinHash [K] of the text: in each place the smallest value that one of K hash functions gives its n-grams."""
    grams_G = _grams(text)
    least_K = np.full(PLACES, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(grams_G), CHUNK):
        hashed = (
            grams_G[start : start + CHUNK, None] * _FACTOR_K + _SHIFT_K
        )  # modulo 2**64, of which the upper half counts
        least_K = np.minimum(least_K, hashed.min(axis=0))
    return (least_K >> np.uint64(32)).astype(np.uint32)


def _grams(text: str) -> NDArray[np.uint64]:
    """One hash an n-gram [G], at least one."""
    plain = "".join(text.casefold().split()).ljust(GRAM, "\0")
    codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32)
    last = len(codes) - GRAM + 1
    return fold(*(codes[i : last + i] for i in range(GRAM))).astype(np.uint64)


def near_pairs(signatures_NK: UInt32) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pairs [P, 2] of texts (the earlier one first, in order) that are SIMILAR, and how similar each is [P]."""
    found = [_candidates(band) for band in np.split(signatures_NK, BANDS, axis=1)]
    pairs_P2 = np.unique(np.concatenate(found), axis=0)
    similar_P = np.empty(len(pairs_P2))
    for start in range(0, len(pairs_P2), CHUNK):
        part = slice(start, start + CHUNK)
        one, other = signatures_NK[pairs_P2[part, 0]], signatures_NK[pairs_P2[part, 1]]
        similar_P[part] = (one == other).mean(axis=1)
    kept = similar_P >= SIMILAR
    return pairs_P2[kept], similar_P[kept]


def _candidates(band: UInt32) -> NDArray[np.int64]:
    """Pairs [P, 2] of texts that agree in all places of `band` [N, places]."""
    key_N = (band * _FACTOR_K[: band.shape[1]]).sum(axis=1, dtype=np.uint64)  # a chance collision costs one look
    order = np.argsort(key_N, kind="stable")
    key_N = key_N[order]
    pairs = [np.empty((0, 2), np.int64)]
    for distance in range(1, NEIGHBOURS + 1):
        same = np.flatnonzero(key_N[distance:] == key_N[:-distance])
        pairs.append(np.stack([order[same], order[same + distance]], axis=1))
    return np.concatenate(pairs)
