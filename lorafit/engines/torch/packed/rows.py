"""Which rows does a layer compute, and what may each of them look at?

A micro-batch's rows are each sample's own tokens, end to end; what all samples of a step begin with is computed once,
elsewhere (prefix.py), and only its keys and values are looked at. Letters: T rows, P shared tokens, h half a head.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lorafit.data.batch import MicroBatch


@dataclass(frozen=True)
class Shared:
    """One layer's keys and values of the shared tokens [P, 2*heads*D], and their gradients, which their readers add to."""

    keys_values: Tensor
    grad: Tensor


@dataclass(frozen=True)
class Rows:
    """Samples as [begin, end) among the rows, rotary positions, and what is special about one layer."""

    segments: list[tuple[int, int]]
    cos_T1h: Tensor
    sin_T1h: Tensor
    kept: Tensor | None = None  # the rows whose output somebody looks at; None: all
    shared: Shared | None = None  # what every sample looks at besides itself
    read: Shared | None = None  # these rows are the shared ones: what their readers left

    def but(self, kept: Tensor | None = None, shared: Shared | None = None, read: Shared | None = None) -> "Rows":
        """The same rows in a layer of which this is true."""
        return replace(self, kept=kept, shared=shared, read=read)


@dataclass(frozen=True)
class Tokens:
    """A micro-batch as the decoder sees it: ids and rows, the row before each target, the targets; keys of dropout."""

    ids_T: Tensor
    rows: Rows
    before_N: Tensor
    targets_N: Tensor


def own_tokens(micro: MicroBatch, shared: int, rotary: nn.Module) -> Tokens:
    """Each sample's tokens after the first `shared` ones."""
    taken = [np.arange(a + shared, b) for a, b in itertools.pairwise(micro.segments.tolist())]
    order = np.concatenate(taken)
    ends = np.cumsum([0, *(len(part) for part in taken)]).tolist()
    ids = torch.from_numpy(micro.input_ids[order].astype(np.int64))
    places = np.flatnonzero(micro.target_mask[order])
    rows = rows_at(micro.position_ids[order], list(itertools.pairwise(ends)), rotary)
    return Tokens(ids, rows, torch.from_numpy(places - 1), ids[places])


def rows_at(positions: NDArray[np.integer], segments: list[tuple[int, int]], rotary: nn.Module) -> Rows:
    """Rows at these positions of their samples."""
    cos, sin = rotary(torch.empty(1), torch.from_numpy(positions.astype(np.int64))[None])
    half = cos.shape[-1] // 2
    return Rows(segments, cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous())
