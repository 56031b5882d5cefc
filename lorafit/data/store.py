"""How are a million samples kept? End to end in plain numpy files, mapped into memory: none of them is a Python object."""

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

HEADER_BYTES = 128  # of a one-dimensional .npy file, whatever its length


@dataclass(frozen=True)
class SampleStore:
    """Many samples in four arrays: sample i is `lengths[i]` tokens from `starts[i]` on. Stores may share tokens."""

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
        """The samples at `rows`, in that order, without a copy of their tokens."""
        return SampleStore(self.input_ids, self.target_mask, self.starts[rows], self.lengths[rows])


def digest(*stores: SampleStore) -> str:
    """sha256 over all samples' lengths, ids and masks in order: whether two stores hold the same."""
    sha = hashlib.sha256()
    for store in stores:
        sha.update(np.int64(len(store)).tobytes())
        sha.update(store.lengths.tobytes())
        for sample in store:
            sha.update(sample.input_ids.tobytes())
            sha.update(sample.target_mask.tobytes())
    return sha.hexdigest()


class Column:
    """A .npy file that grows: `array` is appended at once, the header written last, when the length is known."""

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


def mapped(path: Path) -> NDArray[Any]:
    """The array in a .npy file, read as it is needed."""
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array.view(np.ndarray)
