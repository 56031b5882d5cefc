"""LoRA: a low-rank delta beside a frozen linear layer, with its own backward and keyed dropout.

y = base(x) + scale x dropout(x) A^T B^T (Hu et al. 2021, https://arxiv.org/abs/2106.09685), as in PEFT.
The delta saves x and x A^T once, and keeps no copy of a dropped x after the pass. Dropout comes from a hash of (seed,
step, place, position, module, channel), so that every split, restart and recompute draws the same mask.
Letters: T tokens, I inputs, O outputs, R rank.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lorafit import hashing
from lorafit.data.micro_batch import MicroBatch

MIXED = 64  # tokens hashed at once: their channels fit in the CPU cache


class DropoutKeys:
    """The dropout of a micro-batch: the rate `p`, and one hash key per token, set before each forward pass."""

    def __init__(self, p: float, seed: int = 0, device: str = "cpu") -> None:
        self.p, self.seed, self.device = p, seed, device
        self.token_keys_T: Tensor | None = None

    @contextmanager
    def for_micro_batch(self, step: int, micro: MicroBatch) -> Iterator[None]:
        """Set the keys of `micro` inside; its tokens must be computed in its order."""
        if self.p > 0:
            places = np.repeat(micro.index_in_step, np.diff(micro.segments))
            self.set_keys(hashing.dropout_row_keys(self.seed, step, places, micro.position_ids))
        try:
            yield
        finally:
            self.token_keys_T = None

    @contextmanager
    def only(self, kept: Tensor | None) -> Iterator[None]:
        """Restrict the keys to the tokens `kept` inside; None: all tokens."""
        before = self.token_keys_T
        if before is not None and kept is not None:
            self.token_keys_T = before[kept]
        try:
            yield
        finally:
            self.token_keys_T = before

    def set_keys(self, rows: NDArray[np.uint32]) -> None:
        """Set the keys [T], one per token."""
        self.token_keys_T = torch.from_numpy(rows.view(np.int32)).to(self.device)


def logical_shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift int32 logically to the right (torch's shift is arithmetic)."""
    return (x >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def mix_(x: Tensor) -> Tensor:
    """Apply `hashing.mix` in place, in int32 arithmetic, which wraps as uint32 does."""
    for bits, multiplier in zip(hashing.SHIFTS, (*hashing.MULTIPLIERS, None), strict=True):
        x ^= logical_shift_right(x, bits)
        if multiplier is not None:
            x *= multiplier - (1 << 32) if multiplier >= 1 << 31 else multiplier
    return x


class LoRALinear(nn.Module):
    """A frozen linear layer `base` with a trainable delta, added if `delta_enabled`.

    `lora_A` [R,I] and `lora_B` [O,R] are fp32.
    """

    def __init__(self, base: nn.Linear, name: str, r: int, scale: float, dropout: DropoutKeys) -> None:
        super().__init__()
        device = base.weight.device
        self.base, self.name, self.scale, self.dropout, self.delta_enabled = base, name, scale, dropout, True
        self._word = int(hashing.fold(name).view(np.int32))
        self.lora_A = nn.Parameter(torch.empty(r, base.in_features, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r, dtype=torch.float32, device=device))

    @property
    def weight(self) -> Tensor:
        """Return the base's weight, for models (Mamba's fast path) that read it without calling the layer."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """Return the base's bias."""
        return self.base.bias

    def reset(self, seed: int) -> None:
        """Set A uniform in +-1/sqrt(in) from (seed, module), and B to zero.

        The range is that of PEFT's kaiming_uniform with a = sqrt(5).
        """
        r, inputs = self.lora_A.shape
        uniform = hashing.uniform(int(hashing.fold("init", seed, self.name)), r * inputs).reshape(r, inputs)
        start = ((2 * uniform - 1) / np.float32(np.sqrt(inputs))).astype(np.float32)
        with torch.no_grad():
            self.lora_A.copy_(torch.from_numpy(start))
            self.lora_B.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return base(x), plus the delta if `delta_enabled`."""
        y: Tensor = self.base(x)
        if not self.delta_enabled:
            return y
        if y._is_view() or not y.is_contiguous():  # quantized layers return views, which must not be changed in place
            y = y.clone(memory_format=torch.contiguous_format)
        out: Tensor = _LoRADelta.apply(y, x, self.lora_A, self.lora_B, self)  # type: ignore[no-untyped-call]
        return out

    @property
    def dropout_active(self) -> bool:
        """Return whether dropout is active: keys are set and p > 0."""
        return self.dropout.token_keys_T is not None and self.dropout.p > 0

    def apply_dropout(self, x_TI: Tensor) -> Tensor:
        """Return dropout(x): the same keys drop the same channels at every call."""
        return (x_TI * self.dropout_mask(x_TI.shape[1])).to(x_TI.dtype) if self.dropout_active else x_TI

    def dropout_mask(self, inputs: int) -> Tensor:
        """Return [T,I] fp32: 0 where an input is dropped, 1 / (1 - p) where it stays."""
        assert self.dropout.token_keys_T is not None
        rows_T = mix_(self.dropout.token_keys_T ^ self._word)
        channels_I = torch.arange(inputs, dtype=torch.int32, device=rows_T.device)
        least, scale = hashing.dropout_threshold(self.dropout.p), 1 / (1 - self.dropout.p)
        kept_TI = torch.empty(len(rows_T), inputs, device=rows_T.device)
        for rows, part in zip(rows_T.split(MIXED), kept_TI.split(MIXED), strict=True):
            bits = logical_shift_right(mix_(rows[:, None] ^ channels_I), 32 - hashing.UNIT_BITS)
            torch.mul(bits >= least, scale, out=part)
        return kept_TI


class _LoRADelta(torch.autograd.Function):
    """Autograd function: y + scale x dropout(x) A^T B^T, added to y in place."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, layer: LoRALinear) -> Tensor:
        xa_TR = layer.apply_dropout(x.reshape(-1, x.shape[-1])) @ a.to(x.dtype).t()
        ctx.save_for_backward(x, xa_TR, a, b)
        ctx.layer = layer
        ctx.mark_dirty(y)
        y.view(-1, y.shape[-1]).addmm_(xa_TR, b.to(x.dtype).t(), alpha=layer.scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, xa_TR, a, b = ctx.saved_tensors
        layer: LoRALinear = ctx.layer
        (grad_y,) = grads
        grad_TO, x_TI = grad_y.reshape(-1, grad_y.shape[-1]), x.reshape(-1, x.shape[-1])
        grad_TR = (grad_TO @ b.to(x.dtype)) * layer.scale
        grad_b = (grad_TO.t() @ xa_TR) * layer.scale
        grad_a = grad_TR.t() @ layer.apply_dropout(x_TI)
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = layer.apply_dropout(grad_TR @ a.to(x.dtype)).view_as(x)
        return grad_y, grad_x, grad_a.to(a.dtype), grad_b.to(b.dtype), None
