"""Which rows does a layer compute, and what may each of them look at?

A micro-batch's rows are each sample's own tokens, end to end; what samples of a step begin with alike is computed
once, elsewhere (prefix.py), and only its keys and values are looked at. Letters: T rows, P shared tokens, h half a head.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lorafit.data.micro_batch import MicroBatch


@dataclass(frozen=True)
class SharedKeysValues:
    """One layer's keys and values of the shared tokens [P, 2*heads*D], and their gradients, which their readers add to."""

    keys_values: Tensor
    grad: Tensor


NONE = slice(0, 0)


@dataclass(frozen=True)
class Segment:
    """One sample: its rows, and which of the shared tokens it begins with."""

    own: slice
    shared: slice


@dataclass(frozen=True)
class RowLayout:
    """Samples among the rows, rotary positions, and what is special about one layer."""

    segments: list[Segment]
    cos_T1h: Tensor
    sin_T1h: Tensor
    kept: Tensor | None = None  # the rows whose output somebody looks at; None: all
    shared: SharedKeysValues | None = None  # what samples look at besides themselves
    read: SharedKeysValues | None = None  # these rows are the shared ones: what their readers left

    def but(
        self, kept: Tensor | None = None, shared: SharedKeysValues | None = None, read: SharedKeysValues | None = None
    ) -> "RowLayout":
        """The same rows in a layer of which this is true."""
        return replace(self, kept=kept, shared=shared, read=read)


@dataclass(frozen=True)
class Tokens:
    """A micro-batch as the decoder sees it: ids and rows, the row before each target, the targets; keys of dropout."""

    ids_T: Tensor
    rows: RowLayout
    before_N: Tensor
    targets_N: Tensor


def own_tokens(micro: MicroBatch, spans: Mapping[bytes, slice], rotary: nn.Module) -> Tokens:
    """Each sample's tokens after what it begins with, where that is among the shared tokens: `spans` says at which."""
    shared = [spans.get(beginning, NONE) for beginning in micro.beginnings()]
    bounds = itertools.pairwise(micro.segments.tolist())
    taken = [np.arange(a + s.stop - s.start, b) for (a, b), s in zip(bounds, shared, strict=True)]
    order = np.concatenate(taken)
    segments = end_to_end([len(part) for part in taken], shared)
    ids = torch.from_numpy(micro.input_ids[order].astype(np.int64))
    places = np.flatnonzero(micro.target_mask[order])
    rows = rows_at(micro.position_ids[order], segments, rotary)
    return Tokens(ids, rows, torch.from_numpy(places - 1), ids[places])


def end_to_end(lengths: Sequence[int], shared: Sequence[slice] | None = None) -> list[Segment]:
    """Samples of `lengths` rows one after another."""
    bounds = itertools.pairwise([0, *itertools.accumulate(lengths)])
    return [Segment(slice(*own), seen) for own, seen in zip(bounds, shared or [NONE] * len(lengths), strict=True)]


def rows_at(positions: NDArray[np.integer], segments: list[Segment], rotary: nn.Module) -> RowLayout:
    """Rows at these positions of their samples."""
    cos, sin = rotary(torch.empty(1), torch.from_numpy(positions.astype(np.int64))[None])
    half = cos.shape[-1] // 2
    return RowLayout(segments, cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous())
