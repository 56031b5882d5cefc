"""What does a prediction cost? Cross-entropy at target positions only, in chunks, its gradient made in the forward pass.

The head is frozen, so only the gradient at the hidden states is needed. MLX is lazy: chunks alone would all be kept
until the end, so each waits for the one before it, and the loss waits for its gradient.
Letters: N targets, H hidden, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from lorafit.engines.mlx.arithmetic import exp, row_sums
from lorafit.engines.mlx.matrix import Matrix


@dataclass(frozen=True)
class MLXHead:
    """Hidden states to logits, as the model does it: the matrix, then scaling and soft-cap where it has them."""

    matrix: Matrix
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden_NH: mx.array) -> mx.array:
        """Logits [N,V], fp32."""
        logits_NV = self.matrix(hidden_NH).astype(mx.float32)
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.softcap is not None:
            logits_NV = mx.tanh(logits_NV / self.softcap) * self.softcap
        return logits_NV

    def back(self, grad_NV: mx.array, logits_NV: mx.array, dtype: mx.Dtype) -> mx.array:
        """The gradient at the hidden states."""
        if self.softcap is not None:
            grad_NV = grad_NV * (1 - (logits_NV / self.softcap) ** 2)
        if self.scale != 1.0:
            grad_NV = grad_NV * self.scale
        return self.matrix.back(grad_NV.astype(dtype))


def target_loss(head: MLXHead, hidden_NH: mx.array, targets_N: mx.array, chunk: int) -> mx.array:
    """Sum of the losses (nats, fp32 scalar); `chunk` targets are worked on at a time."""
    total = mx.zeros((), mx.float32)
    count = hidden_NH.shape[0]
    if count == 0:
        return total
    cuts = list(range(chunk, count, chunk))
    for hidden, targets in zip(mx.split(hidden_NH, cuts), mx.split(targets_N, cuts), strict=True):
        total = total + _chunk_loss(head, mx.depends(hidden, total), targets)
    return total


def _chunk_loss(head: MLXHead, hidden_NH: mx.array, targets_N: mx.array) -> mx.array:
    """The targets are captured: MLX would differentiate every argument."""

    @mx.custom_function
    def loss_and_gradient(hidden: mx.array) -> tuple[mx.array, mx.array]:
        logits = head(hidden)
        highest = logits.max(axis=-1, keepdims=True)
        powers = exp(logits - highest)
        sums = row_sums(powers)
        picked = mx.take_along_axis(logits, targets_N[:, None], axis=-1)
        loss = (highest + mx.log(sums) - picked).sum()
        if head.softcap is None and head.scale == 1.0:
            # No one-hot is written, and the division is done on [N,H] instead of [N,V].
            gradient = (head.matrix.back(powers.astype(hidden.dtype)) / sums).astype(hidden.dtype)
            gradient = gradient - head.matrix.rows(targets_N).astype(hidden.dtype)
        else:
            hit = mx.arange(logits.shape[-1])[None] == targets_N[:, None]
            gradient = head.back(powers / sums - hit, logits, hidden.dtype)
        return mx.depends(loss, gradient), gradient

    @loss_and_gradient.vjp
    def backward(_inputs: mx.array, grads: tuple[mx.array, Any], outputs: tuple[mx.array, mx.array]) -> mx.array:
        return (grads[0] * outputs[1]).astype(outputs[1].dtype)

    loss: mx.array = loss_and_gradient(hidden_NH)[0]
    return loss


def plain_loss(head: MLXHead, hidden_NH: mx.array, targets_N: mx.array, chunk: int) -> mx.array:
    """The same sum without a gradient: for evaluation."""
    total = mx.zeros((), mx.float32)
    for start in range(0, hidden_NH.shape[0], chunk):
        part = slice(start, start + chunk)
        logits = head(mx.depends(hidden_NH[part], total))
        highest = logits.max(axis=-1, keepdims=True)
        sums = row_sums(exp(logits - highest))
        picked = mx.take_along_axis(logits, targets_N[part][:, None], axis=-1)
        total = total + (highest + mx.log(sums) - picked).sum()
    return total
