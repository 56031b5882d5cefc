"""LoRA for MLX: a low-rank delta beside each frozen layer, in PEFT's layout, with the dropout that all engines share.

y = W x + scale * B A dropout(x) (Hu et al. 2021, https://arxiv.org/abs/2106.09685). One flat dict holds the adapter
weights by their names in PEFT files, so that a function of the dict can be differentiated, saved and compared.
Letters: T tokens, I inputs, O outputs, R rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import mlx.core as mx
import numpy as np
from mlx import nn
from numpy.typing import NDArray

from lorafit import hashing
from lorafit.engines.mlx.matrix import joined_matrix, matrix_of
from lorafit.run_folders.adapter import lora_names

Params = dict[str, mx.array]  # lora_A [R,I] and lora_B [O,R], fp32, by name


@dataclass
class MLXLoRADelta:
    """State that all adapters of a model share: on or off, dropout rate, and the micro-batch's dropout keys.

    `scales` has the scale of each module's adapter.
    """

    scales: dict[str, float] = field(default_factory=dict)
    on: bool = True
    dropout: float = 0.0
    keys_T: mx.array | None = None  # one key per token; None: no dropout

    def dropped(self, x_TI: mx.array, module: str, keys_T: mx.array) -> mx.array:
        """Return dropout(x). Equal keys drop equal channels in every call."""
        rows_T = mix(keys_T ^ mx.array(int(hashing.fold(module)), mx.uint32))
        words_TI = mix(rows_T[:, None] ^ mx.arange(x_TI.shape[-1], dtype=mx.uint32))
        keep_TI = (words_TI >> (32 - hashing.UNIT_BITS)) >= hashing.dropout_threshold(self.dropout)
        scaled: mx.array = x_TI * keep_TI.astype(x_TI.dtype) * (1 / (1 - self.dropout))
        return scaled


def mix(x: mx.array) -> mx.array:
    """Return `hashing.mix` of x, in uint32 arithmetic, which wraps around."""
    for shift, multiplier in zip(hashing.SHIFTS, (*hashing.MULTIPLIERS, None), strict=True):
        x = x ^ (x >> shift)
        if multiplier is not None:
            x = x * mx.array(multiplier, mx.uint32)
    return x


class LinearGroup:
    """Frozen layers with the same input, computed as one matmul if their formats are equal; each may have an adapter.

    The keys of `modules` are the layers' names in PEFT files.
    """

    def __init__(self, modules: dict[str, nn.Module], delta: MLXLoRADelta) -> None:
        self.modules, self.delta = modules, delta
        whole = joined_matrix(list(modules.values())) if len(modules) > 1 else None
        self._parts = [whole] if whole else [matrix_of(module) for module in modules.values()]
        self._cuts = list(accumulate(matrix_of(module).outputs for module in modules.values()))[:-1]

    def __call__(self, keys_T: mx.array | None, params: Params, x_TI: mx.array) -> list[mx.array]:
        """Return each layer's output [T,O]. With `keys_T`, the adapters' input has dropout."""
        outs = [part(x_TI) for part in self._parts]
        if len(outs) < len(self.modules):
            outs = mx.split(outs[0], self._cuts, axis=-1)
        if not self.delta.on:
            return outs
        learning = [name for name in self.modules if lora_names(name)[0] in params]
        lows = dict(zip(learning, self._down(keys_T, params, learning, x_TI), strict=True))
        return [self._added(params, out, name, lows.get(name)) for out, name in zip(outs, self.modules, strict=True)]

    def _down(self, keys_T: mx.array | None, params: Params, names: Sequence[str], x_TI: mx.array) -> list[mx.array]:
        """Return A dropout(x) [T,R] for each adapter; without dropout, one matmul computes them all."""
        downs = [params[lora_names(name)[0]].astype(x_TI.dtype) for name in names]
        if keys_T is not None:
            return [self.delta.dropped(x_TI, name, keys_T) @ a.T for name, a in zip(names, downs, strict=True)]
        if len(downs) < 2:
            return [x_TI @ a.T for a in downs]
        cuts = list(accumulate(len(a) for a in downs))[:-1]
        return mx.split(x_TI @ mx.concatenate(downs).T, cuts, axis=-1)

    def _added(self, params: Params, out: mx.array, name: str, low_TR: mx.array | None) -> mx.array:
        if low_TR is None:
            return out
        up = params[lora_names(name)[1]].astype(low_TR.dtype)
        return mx.addmm(out, low_TR, up.T, alpha=self.delta.scales[name])


def initial_lora_a(module: str, r: int, inputs: int, seed: int) -> NDArray[np.float32]:
    """Return the initial lora_A [R,I], a function of (seed, module).

    It is uniform in +-1/sqrt(in), as PEFT's kaiming_uniform with a = sqrt(5).
    """
    uniform = hashing.uniform(int(hashing.fold("init", seed, module)), r * inputs).reshape(r, inputs)
    return ((2 * uniform - 1) / np.float32(np.sqrt(inputs))).astype(np.float32)
