"""Row layouts: the rows that a layer computes, and the keys that each row may see.

A micro-batch's rows are each sample's own tokens, end to end. Prefixes that several samples of a step share are
computed once, in prefix.py; the rows only attend to their keys and values.
Letters: T rows, P shared tokens, h half a head.
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
    """One layer's keys and values of the shared tokens [P, 2*heads*D], and the sum of their readers' gradients."""

    keys_values: Tensor
    grad: Tensor


EMPTY_SLICE = slice(0, 0)


@dataclass(frozen=True)
class Segment:
    """One sample: the slice `own` of its rows, and the slice `shared` of the shared tokens that is its prefix."""

    own: slice
    shared: slice


@dataclass(frozen=True)
class RowLayout:
    """The samples in the rows, rotary tables, and the settings of one layer."""

    segments: list[Segment]
    cos_T1h: Tensor
    sin_T1h: Tensor
    kept: Tensor | None = None  # rows whose output is needed; None: all
    shared: SharedKeysValues | None = None  # keys and values that samples see besides their own
    reader_gradients: SharedKeysValues | None = (
        None  # set for the shared prefixes: gradients from the samples that attend to them
    )

    def with_settings(
        self, kept: Tensor | None = None, shared: SharedKeysValues | None = None, read: SharedKeysValues | None = None
    ) -> "RowLayout":
        """Return the same rows with these settings of one layer."""
        return replace(self, kept=kept, shared=shared, reader_gradients=read)


@dataclass(frozen=True)
class Tokens:
    """A micro-batch as the decoder computes it: token ids, rows, the row before each target, and the targets."""

    ids_T: Tensor
    rows: RowLayout
    before_N: Tensor
    targets_N: Tensor


def tokens_after_prefix(micro: MicroBatch, spans: Mapping[bytes, slice], rotary: nn.Module) -> Tokens:
    """Return each sample's tokens after its shared prefix; `spans` gives the prefix's slice of the shared tokens.

    A prefix that is not in `spans` belongs to the sample's own tokens.
    """
    shared = [spans.get(beginning, EMPTY_SLICE) for beginning in micro.shared_prefix_bytes()]
    bounds = itertools.pairwise(micro.segments.tolist())
    taken = [np.arange(a + s.stop - s.start, b) for (a, b), s in zip(bounds, shared, strict=True)]
    order = np.concatenate(taken)
    segments = consecutive_segments([len(part) for part in taken], shared)
    ids = torch.from_numpy(micro.input_ids[order].astype(np.int64))
    places = np.flatnonzero(micro.target_mask[order])
    rows = row_layout(micro.position_ids[order], segments, rotary)
    return Tokens(ids, rows, torch.from_numpy(places - 1), ids[places])


def consecutive_segments(lengths: Sequence[int], shared: Sequence[slice] | None = None) -> list[Segment]:
    """Return segments of `lengths` rows, one after another."""
    bounds = itertools.pairwise([0, *itertools.accumulate(lengths)])
    return [
        Segment(slice(*own), seen) for own, seen in zip(bounds, shared or [EMPTY_SLICE] * len(lengths), strict=True)
    ]


def row_layout(positions: NDArray[np.integer], segments: list[Segment], rotary: nn.Module) -> RowLayout:
    """Return the layout of rows at these positions of their samples."""
    cos, sin = rotary(torch.empty(1), torch.from_numpy(positions.astype(np.int64))[None])
    half = cos.shape[-1] // 2
    return RowLayout(segments, cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous())
