"""Frozen matrices, plain or quantized: forward, backward, and several matrices as one.

MLX quantizes groups of numbers in a row to `bits`, with one scale and one offset per group.
Letters: T tokens, I inputs, O outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import mlx.core as mx
from mlx import nn

# Tokens. Above it, MLX's quantized matmul on the CPU, which does not use BLAS, is up to 30 times slower than unpacking.
MAX_PACKED_TOKENS = 4


@dataclass(frozen=True)
class Matrix:
    """A frozen weight [O,I] with an optional bias [O].

    A quantized weight is packed in uint32, with `scales` and `offsets` per group; without `scales` the weight is plain.
    """

    weight: mx.array
    bias: mx.array | None = None
    scales: mx.array | None = None
    offsets: mx.array | None = None
    group_size: int = 0
    bits: int = 0
    mode: str = "affine"

    @property
    def outputs(self) -> int:
        """The number of outputs O."""
        return int(self.weight.shape[0])

    def __call__(self, x: mx.array) -> mx.array:
        """Map x [T,I] to [T,O]."""
        if self.scales is None:
            product = x @ self.weight.T if self.bias is None else mx.addmm(self.bias, x, self.weight.T)
            return product
        product = self._quantised(x, transpose=True)
        return product if self.bias is None else product + self.bias

    def input_gradient(self, grad: mx.array) -> mx.array:
        """Return the gradient with respect to x: grad [T,O] -> [T,I]."""
        return grad @ self.weight if self.scales is None else self._quantised(grad, transpose=False)

    def rows(self, index: mx.array) -> mx.array:
        """Return unpacked rows of the weight: [N] -> [N,I]."""
        if self.scales is None:
            return self.weight[index]
        offsets = None if self.offsets is None else self.offsets[index]
        return mx.dequantize(
            self.weight[index], self.scales[index], offsets, group_size=self.group_size, bits=self.bits, mode=self.mode
        )

    def _quantised(self, x: mx.array, transpose: bool) -> mx.array:
        if len(x) > MAX_PACKED_TOKENS and mx.default_device() == mx.Device(mx.cpu):
            return self._unpacked_matmul(x) if transpose else x @ self.rows(mx.arange(self.outputs))
        return mx.quantized_matmul(
            x, self.weight, self.scales, self.offsets,
            transpose=transpose, group_size=self.group_size, bits=self.bits, mode=self.mode,
        )  # fmt: skip

    def _unpacked_matmul(self, x: mx.array) -> mx.array:
        """Return x W^T with W unpacked only during the matmul; the backward pass unpacks W again."""
        every = mx.arange(self.outputs)

        @mx.custom_function
        def product(x: mx.array) -> mx.array:
            return x @ self.rows(every).T

        @product.vjp
        def backward(_x: mx.array, grad: mx.array, _output: mx.array) -> mx.array:
            return grad @ self.rows(every)

        result: mx.array = product(x)
        return result

    @property
    def arrays(self) -> list[mx.array]:
        """All arrays of the matrix that are not None."""
        return [a for a in (self.weight, self.bias, self.scales, self.offsets) if a is not None]


def matrix_of(module: nn.Module) -> Matrix:
    """Return the frozen matrix of an MLX linear or embedding layer."""
    m: Any = module
    bias = m.bias if "bias" in m else None
    if "scales" not in m:
        return Matrix(m.weight, bias)
    return Matrix(m.weight, bias, m.scales, m.get("biases"), m.group_size, m.bits, getattr(m, "mode", "affine"))


def joined_matrix(modules: Sequence[nn.Module]) -> Matrix | None:
    """Join the layers' matrices into one; return None if their formats differ.

    The layers' own arrays become views of the joined matrix, so that no weight is stored twice.
    """
    parts = [matrix_of(module) for module in modules]
    kinds = {(p.bias is None, p.scales is None, p.offsets is None, p.group_size, p.bits, p.mode) for p in parts}
    if len(kinds) > 1:
        return None

    def joined(arrays: list[Any]) -> mx.array | None:
        return None if arrays[0] is None else mx.concatenate(arrays)

    first = parts[0]
    whole = Matrix(
        mx.concatenate([p.weight for p in parts]),
        joined([p.bias for p in parts]),
        joined([p.scales for p in parts]),
        joined([p.offsets for p in parts]),
        first.group_size,
        first.bits,
        first.mode,
    )
    mx.eval(whole.arrays)
    ends = list(accumulate((p.outputs for p in parts), initial=0))
    for module, start, end in zip(modules, ends, ends[1:], strict=False):
        for name, array in (
            ("weight", whole.weight),
            ("bias", whole.bias),
            ("scales", whole.scales),
            ("biases", whole.offsets),
        ):
            if array is not None:
                module[name] = array[start:end]  # a view
        mx.eval(module.parameters())
    return whole
