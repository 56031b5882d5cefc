"""Cross-entropy at target positions only, in chunks, with the gradient computed in the forward pass.

The head is frozen, so only the gradient with respect to the hidden states is needed. MLX is lazy and would keep all
chunks until the end. So each chunk depends on the one before it, and each loss depends on its gradient.
Letters: N targets, H hidden, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from lorafit.engines.mlx.arithmetic import exp, row_sums
from lorafit.engines.mlx.matrix import Matrix


@dataclass(frozen=True)
class MLXHead:
    """The LM head: hidden states to logits by the matrix, then scale and softcap where the model has them."""

    matrix: Matrix
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden_NH: mx.array) -> mx.array:
        """Return logits [N,V] in fp32."""
        logits_NV = self.matrix(hidden_NH).astype(mx.float32)
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.softcap is not None:
            logits_NV = mx.tanh(logits_NV / self.softcap) * self.softcap
        return logits_NV

    def input_gradient(self, grad_NV: mx.array, logits_NV: mx.array, dtype: mx.Dtype) -> mx.array:
        """Return the gradient with respect to the hidden states [N,H]."""
        if self.softcap is not None:
            grad_NV = grad_NV * (1 - (logits_NV / self.softcap) ** 2)
        if self.scale != 1.0:
            grad_NV = grad_NV * self.scale
        return self.matrix.input_gradient(grad_NV.astype(dtype))


def target_loss(head: MLXHead, hidden_NH: mx.array, targets_N: mx.array, chunk: int) -> mx.array:
    """Return the sum of the losses (nats, fp32 scalar), computed `chunk` targets at a time."""
    total = mx.zeros((), mx.float32)
    count = hidden_NH.shape[0]
    if count == 0:
        return total
    cuts = list(range(chunk, count, chunk))
    for hidden, targets in zip(mx.split(hidden_NH, cuts), mx.split(targets_N, cuts), strict=True):
        total = total + _chunk_loss(head, mx.depends(hidden, total), targets)
    return total


def _chunk_loss(head: MLXHead, hidden_NH: mx.array, targets_N: mx.array) -> mx.array:
    """Return the loss of one chunk. The targets are captured, not passed: MLX would differentiate every argument."""

    @mx.custom_function
    def loss_and_gradient(hidden: mx.array) -> tuple[mx.array, mx.array]:
        logits = head(hidden)
        highest = logits.max(axis=-1, keepdims=True)
        powers = exp(logits - highest)
        sums = row_sums(powers)
        picked = mx.take_along_axis(logits, targets_N[:, None], axis=-1)
        loss = (highest + mx.log(sums) - picked).sum()
        if head.softcap is None and head.scale == 1.0:
            # This form needs no one-hot array and divides [N,H] instead of [N,V].
            gradient = (head.matrix.input_gradient(powers.astype(hidden.dtype)) / sums).astype(hidden.dtype)
            gradient = gradient - head.matrix.rows(targets_N).astype(hidden.dtype)
        else:
            hit = mx.arange(logits.shape[-1])[None] == targets_N[:, None]
            gradient = head.input_gradient(powers / sums - hit, logits, hidden.dtype)
        return mx.depends(loss, gradient), gradient

    @loss_and_gradient.vjp
    def backward(_inputs: mx.array, grads: tuple[mx.array, Any], outputs: tuple[mx.array, mx.array]) -> mx.array:
        return (grads[0] * outputs[1]).astype(outputs[1].dtype)

    loss: mx.array = loss_and_gradient(hidden_NH)[0]
    return loss


def evaluation_loss(head: MLXHead, hidden_NH: mx.array, targets_N: mx.array, chunk: int) -> mx.array:
    """Return the sum of `target_loss` without a gradient, for evaluation."""
    total = mx.zeros((), mx.float32)
    for start in range(0, hidden_NH.shape[0], chunk):
        part = slice(start, start + chunk)
        logits = head(mx.depends(hidden_NH[part], total))
        highest = logits.max(axis=-1, keepdims=True)
        sums = row_sums(exp(logits - highest))
        picked = mx.take_along_axis(logits, targets_N[part][:, None], axis=-1)
        total = total + (highest + mx.log(sums) - picked).sum()
    return total
