"""How does a frozen linear layer learn? A low-rank delta beside it, with its own backward and keyed dropout.

y = base(x) + scale x dropout(x) A^T B^T (Hu et al. 2021, https://arxiv.org/abs/2106.09685), as PEFT has it.
The delta saves x and x A^T once, makes no copy of a dropped x that outlives the pass, and draws dropout from a hash
of (seed, step, place, position, module, channel), so that every split, restart and recompute draws the same mask.
Letters: T tokens, I inputs, O outputs, R rank.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lorafit import hashing


class DropoutKeys:
    """The micro-batch's dropout: rate `p`, and one key a token, set before each forward pass."""

    def __init__(self, p: float) -> None:
        self.p = p
        self.rows_T: Tensor | None = None

    def set_rows(self, rows: NDArray[np.uint32], device: torch.device) -> None:
        self.rows_T = torch.from_numpy(rows.view(np.int32)).to(device)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int32 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (32 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """`hashing.mix` in int32 arithmetic, which wraps as uint32 does."""
    for shift, multiplier in zip(hashing.SHIFTS, (*hashing.MULTIPLIERS, None), strict=True):
        x = x ^ _shift(x, shift)
        if multiplier is not None:
            x = x * (multiplier - (1 << 32) if multiplier >= 1 << 31 else multiplier)
    return x


class LoRALinear(nn.Module):
    """A frozen `base` linear layer with a trainable delta. `lora_A` [R,I] and `lora_B` [O,R] are fp32."""

    def __init__(self, base: nn.Linear, name: str, r: int, scale: float, dropout: DropoutKeys) -> None:
        super().__init__()
        device = base.weight.device
        self.base, self.name, self.scale, self.dropout, self.on = base, name, scale, dropout, True
        self._word = int(hashing.fold(name).view(np.int32))
        self.lora_A = nn.Parameter(torch.empty(r, base.in_features, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r, dtype=torch.float32, device=device))

    @property
    def weight(self) -> Tensor:
        """The base's weight, for models (Mamba's fast path) that take it without calling the layer."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def reset(self, seed: int) -> None:
        """A uniform in +-1/sqrt(in) (PEFT's kaiming_uniform with a = sqrt(5)) from (seed, module); B zero."""
        r, inputs = self.lora_A.shape
        uniform = hashing.uniform(int(hashing.fold("init", seed, self.name)), r * inputs).reshape(r, inputs)
        start = ((2 * uniform - 1) / np.float32(np.sqrt(inputs))).astype(np.float32)
        with torch.no_grad():
            self.lora_A.copy_(torch.from_numpy(start))
            self.lora_B.zero_()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        if not self.on:
            return y
        if y._is_view() or not y.is_contiguous():  # quantised layers return views, which nobody may change in place
            y = y.clone(memory_format=torch.contiguous_format)
        out: Tensor = _Delta.apply(y, x, self.lora_A, self.lora_B, self)  # type: ignore[no-untyped-call]
        return out

    def dropped(self, x_TI: Tensor) -> Tensor:
        """dropout(x): the same channels for the same keys, whenever it is called."""
        rows_T = self.dropout.rows_T
        if rows_T is None or self.dropout.p == 0:
            return x_TI
        rows_T = mix(rows_T ^ self._word)
        channels_I = torch.arange(x_TI.shape[1], dtype=torch.int32, device=x_TI.device)
        bits_TI = _shift(mix(rows_T[:, None] ^ channels_I), 32 - hashing.UNIT_BITS)
        keep_TI = bits_TI >= hashing.dropout_threshold(self.dropout.p)
        return x_TI * keep_TI.to(x_TI.dtype) * (1 / (1 - self.dropout.p))


class _Delta(torch.autograd.Function):
    """y + scale x dropout(x) A^T B^T, added to y in place."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, layer: LoRALinear) -> Tensor:
        xa_TR = layer.dropped(x.reshape(-1, x.shape[-1])) @ a.to(x.dtype).t()
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
        grad_a = grad_TR.t() @ layer.dropped(x_TI)
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = layer.dropped(grad_TR @ a.to(x.dtype)).view_as(x)
        return grad_y, grad_x, grad_a.to(a.dtype), grad_b.to(b.dtype), None
