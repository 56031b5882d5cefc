"""RMS norm, rotary positions and SwiGLU, forward and backward, without unnecessary copies.

Letters: T tokens, H width of the normalized axis, N heads, D head width, h half of it, I the MLP's width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class RMSNorm:
    """x / rms(x) * weight over the last axis (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

    weight_H: Tensor
    eps: float

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalized x, and 1 / rms for the backward."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return (x * inverse).mul_(self.weight_H), inverse

    def recompute(self, x: Tensor, inverse: Tensor) -> Tensor:
        """Return the normalized x from x and 1 / rms, without the sums."""
        return (x * inverse).mul_(self.weight_H)

    def backward(self, grad: Tensor, x: Tensor, inverse: Tensor) -> Tensor:
        """Return the gradient at x."""
        unit, weighted = x * inverse, grad * self.weight_H
        mean = torch.linalg.vecdot(weighted, unit).div_(x.shape[-1]).unsqueeze_(-1)
        return weighted.sub_(unit.mul_(mean)).mul_(inverse)


def rotate_(x_TND: Tensor, cos_T1h: Tensor, sin_T1h: Tensor) -> None:
    """Apply rotary positions in place (Su et al. 2021, https://arxiv.org/abs/2104.09864), halves as in transformers.

    With the negated sine the rotation is its own inverse and its own backward.
    """
    left, right = x_TND.chunk(2, -1)
    turned = (left * cos_T1h).addcmul_(right, sin_T1h, value=-1)
    right.mul_(cos_T1h).addcmul_(left, sin_T1h)
    left.copy_(turned)


def swiglu(gate_up_T2I: Tensor) -> tuple[Tensor, Tensor]:
    """Return silu(gate) * up [T,I], and silu(gate), which the backward needs.

    Source: Shazeer 2020, https://arxiv.org/abs/2002.05202.
    """
    gate, up = gate_up_T2I.chunk(2, 1)
    silu = F.silu(gate)
    return silu * up, silu


def swiglu_backward(grad_TI: Tensor, gate_up_T2I: Tensor, silu_TI: Tensor) -> Tensor:
    """Return the gradient at gate and up [T,2I]. `grad_TI` is overwritten."""
    gate, up = gate_up_T2I.chunk(2, 1)
    grad_T2I = torch.empty_like(gate_up_T2I)
    grad_gate, grad_up = grad_T2I.chunk(2, 1)
    torch.mul(grad_TI, silu_TI, out=grad_up)
    torch.ops.aten.silu_backward(grad_TI.mul_(up), gate, grad_input=grad_gate)
    return grad_T2I
