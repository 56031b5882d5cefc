"""Sample storage: samples end to end in plain .npy files, memory-mapped.

No Python object is kept per sample, so a store can hold millions of samples.
"""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lorafit.data.micro_batch import Bool, Int32, Sample

PIECE, ROWS = 1 << 22, 1024  # numbers and rows that read_places() reads at once
HEADER_BYTES = 128  # size of the header of a one-dimensional .npy file of any length


@dataclass(frozen=True)
class SampleStore:
    """Many samples in four arrays. Sample i has `lengths[i]` tokens from index `starts[i]`. Stores may share tokens."""

    input_ids: Int32
    target_mask: Bool
    starts: NDArray[np.int64]
    lengths: Int32

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        start, length = int(self.starts[index]), int(self.lengths[index])
        return Sample(self.input_ids[start : start + length], self.target_mask[start : start + length])

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def select(self, rows: NDArray[np.int64]) -> "SampleStore":
        """Return the samples at `rows`, in that order, without a copy of their tokens."""
        return SampleStore(self.input_ids, self.target_mask, self.starts[rows], self.lengths[rows])


def digest(*stores: SampleStore) -> str:
    """Return the sha256 of the lengths, token ids and masks of all samples, in order."""
    sha = hashlib.sha256()
    for store in stores:
        sha.update(np.int64(len(store)).tobytes())
        sha.update(store.lengths.tobytes())
        for sample in store:
            sha.update(sample.input_ids.tobytes())
            sha.update(sample.target_mask.tobytes())
    return sha.hexdigest()


class NpyWriter:
    """A .npy file that grows. `append` writes at once; the header is written last, when the length is known."""

    def __init__(self, path: Path, dtype: Any) -> None:
        self.dtype, self.length, self.sha = np.dtype(dtype), 0, hashlib.sha256()
        self._file = path.open("wb")
        self._file.write(bytes(HEADER_BYTES))

    def append(self, array: Any) -> None:
        data = np.ascontiguousarray(array, self.dtype).reshape(-1)
        self._file.write(data.data)
        self.sha.update(data.data)
        self.length += len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        header = io.BytesIO()
        facts = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(header, facts)
        with self._file:
            if kind is None:
                self._file.seek(0)
                self._file.write(header.getvalue())
        assert len(header.getvalue()) == HEADER_BYTES


def open_mapped(path: Path) -> NDArray[Any]:
    """Return the array of a .npy file, memory-mapped."""
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array.view(np.ndarray)


def read_places(array: Int32, places_NP: NDArray[np.int64]) -> Int32:
    """Return array[places_NP], for rows in rising order.

    A mapped file is read in pieces of at most PIECE numbers: indexing would keep all pages that it touches in memory.
    """
    mapped = array.base
    if not isinstance(mapped, np.memmap) or mapped.filename is None or len(array) <= PIECE:
        return array[places_NP]
    found = np.empty(places_NP.shape, array.dtype)
    for first in range(0, len(places_NP), ROWS):
        rows_RP = places_NP[first : first + ROWS]
        low, high = int(rows_RP.min()), int(rows_RP.max()) + 1
        if high - low > PIECE:  # a few rows far apart touch few pages
            found[first : first + ROWS] = array[rows_RP]
            continue
        offset = HEADER_BYTES + low * array.dtype.itemsize
        piece = np.fromfile(mapped.filename, array.dtype, high - low, offset=offset)
        found[first : first + ROWS] = piece[rows_RP - low]
    return found
