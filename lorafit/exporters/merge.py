"""The tensors of a base model with an adapter merged into them, read from their files one after another.

W + scale x B A is computed in float32 and in blocks of rows, so that no more than a block is in memory.
Letters: O outputs, I inputs, R rank.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorafit.exporters.rounding import WORDS, Float32, widened
from lorafit.models.weight_files import Header, read_headers, weight_files

BLOCK = 1 << 20  # numbers in a block


class Delta(NamedTuple):
    """The adapter of one weight [O,I]: `a` [R,I], `b` [O,R], and the factor before B A."""

    a: Float32
    b: Float32
    scale: float

    def rows(self, rows: slice) -> Float32:
        """Return scale x B A of `rows`, [rows,I]."""
        return np.float32(self.scale) * (self.b[rows] @ self.a)


class Block(NamedTuple):
    """Some rows of a tensor, end to end: the weights of the base, and the adapter's delta (None: no adapter)."""

    weight: Float32
    delta: Float32 | None

    @property
    def merged(self) -> Float32:
        """W + d in float32."""
        return self.weight if self.delta is None else self.weight + self.delta


@dataclass(frozen=True)
class MergedTensor:
    """One tensor of the base's `file`, with the adapter's `delta` if it has one. Nothing is read yet.

    `weight` returns the tensor where the training saw another one than that in the file.
    """

    file: Path
    header: Header
    delta: Delta | None = None
    weight: Callable[[], Float32] | None = None

    @property
    def name(self) -> str:
        """The name in the file."""
        return self.header.name

    @property
    def is_float(self) -> bool:
        """Whether lorafit can read and round it. Others, such as indices and 8-bit floats, are only copied."""
        return self.header.dtype in WORDS

    def raw(self) -> Iterator[bytes]:
        """Yield the bytes of the base's tensor as the file has them, in pieces. Raises OSError at a short file."""
        left = self.header.size
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.header.start)
            while left:
                piece = stream.read(min(left, 16 * BLOCK))
                if not piece:
                    raise OSError(f"{self.file.name} ended {left} bytes too early")
                left -= len(piece)
                yield piece

    def blocks(self) -> Iterator[Block]:
        """Yield the tensor in blocks of whole rows of its first dimension. Raises OSError at a short file."""
        shape, words = self.header.shape or (1,), np.dtype(WORDS[self.header.dtype])
        known = None if self.weight is None else self.weight()
        width = max(prod(shape[1:]), 1)
        step = max(1, BLOCK // width)
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.header.start)
            for row in range(0, shape[0], step):
                rows = slice(row, min(row + step, shape[0]))
                delta = None if self.delta is None else self.delta.rows(rows)
                if known is not None:
                    yield Block(known[rows], delta)
                    continue
                place = np.empty((rows.stop - row, width), words)
                _fill(stream, place)
                yield Block(widened(place, self.header.dtype), delta)

    def parts(self) -> tuple[Float32, Float32 | None]:
        """Return the whole tensor of the base in float32, in its shape, and its delta if it has one."""
        weight = np.empty(self.header.shape, np.float32)
        rows = weight.reshape(-1)
        done = 0
        for block in replace(self, delta=None).blocks():
            rows[done : done + block.weight.size] = block.weight.reshape(-1)
            done += block.weight.size
        return weight, None if self.delta is None else self.delta.rows(slice(None))


def merged_tensors(
    folder: Path, deltas: Mapping[str, Delta], weights: Mapping[str, Callable[[], Float32]] | None = None
) -> list[MergedTensor]:
    """Return all tensors of the model in `folder` in the order of its files.

    `deltas`, and `weights` that replace those in the files, are by the names in the files.
    """
    return [
        MergedTensor(file, header, deltas.get(header.name), (weights or {}).get(header.name))
        for file in weight_files(folder)
        for header in sorted(read_headers(file), key=lambda header: header.start)
    ]


def _fill(stream: Any, place: NDArray[Any]) -> None:
    """Read into the memory of `place`; one read may return fewer bytes than requested."""
    left = place.reshape(-1).view(np.uint8).data
    while left:
        got = stream.readinto(left)
        if not got:
            raise OSError(f"the file ended {len(left)} bytes too early")
        left = left[got:]
