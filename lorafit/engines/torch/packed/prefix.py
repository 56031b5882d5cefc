"""Shared prefixes: the tokens with which several samples of a step begin, computed once per step.

Examples are a template's opening, a system prompt and few-shot examples. The same tokens at the same positions have
the same keys and values in every such sample, since nothing before them differs. Each micro-batch attends to these
keys and values and adds to their gradients. The backward of the prefixes runs once, at the end of the step. The result
is exact without dropout, whose masks would differ between samples.

Letters: P shared tokens, of all prefixes end to end.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lorafit.data.micro_batch import Int32
from lorafit.engines.torch.packed.layer import LayerActivations, PackedLayer
from lorafit.engines.torch.packed.rows import RowLayout, SharedKeysValues, consecutive_segments, row_layout


class PrefixState:
    """The shared prefixes of one step after their forward pass.

    `spans`: the slice of the shared tokens by prefix (its ids as bytes). `shared`: keys and values of each layer.
    """

    def __init__(
        self,
        beginnings: Sequence[Int32],
        embed: nn.Module,
        rotary: nn.Module,
        layers: list[PackedLayer],
        recompute: int,
    ) -> None:
        self.layers = layers
        self.saved: list[LayerActivations] = []
        self.shared: list[SharedKeysValues] = []
        segments = consecutive_segments([len(ids) for ids in beginnings])
        self.spans = {ids.tobytes(): segment.own for ids, segment in zip(beginnings, segments, strict=True)}
        rows = row_layout(np.concatenate([np.arange(len(ids)) for ids in beginnings]), segments, rotary)
        x = embed(torch.from_numpy(np.concatenate(beginnings).astype(np.int64)))
        nobody = torch.empty(0, dtype=torch.long)  # the last layer's output is not needed, only its keys and values
        self.rows = [rows] * (len(layers) - 1) + [rows.with_settings(kept=nobody)]
        for index, (layer, place) in enumerate(zip(layers, self.rows, strict=True)):
            x, saved = layer.forward(x, place)
            keys_values = layer.keys_values(saved)
            if index < recompute:
                keys_values, saved.recomputable = keys_values.clone(), None
            self.saved.append(saved)
            self.shared.append(SharedKeysValues(keys_values, torch.zeros_like(keys_values)))

    def backward(self) -> None:
        """Run the prefixes' backward from the gradients that the samples added to the shared keys and values."""
        grad: Tensor | None = self.saved[-1].x.new_zeros(0, self.saved[-1].x.shape[1])
        for index in range(len(self.layers) - 1, -1, -1):
            rows: RowLayout = self.rows[index].with_settings(kept=self.rows[index].kept, read=self.shared.pop())
            assert grad is not None
            grad = self.layers[index].backward(grad, self.saved.pop(), rows, to_input=index > 0)
