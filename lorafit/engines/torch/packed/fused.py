"""How do several linear layers over one input become one product? Frozen weights and LoRA's A end to end.

The modules' own weights become views of the fused ones, so nothing is kept twice, and whatever else looks at the modules
(saving, answering, transformers' forward) sees the same numbers.

Letters: T tokens, I inputs, O outputs of all parts together, R ranks of all parts together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorafit.engines.torch.lora import LoRALinear


@dataclass(frozen=True)
class Delta:
    """One part's LoRA: its outputs and its ranks among the fused ones."""

    layer: LoRALinear
    outputs: slice
    ranks: slice


class FusedLinear:
    """y = x W^T + b, plus each part's LoRA delta, forward and backward by hand."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        bases = [base_of(part) for part in parts]
        self.weight_OI = _fused([base.weight for base in bases])
        self.bias_O = _fused([base.bias for base in bases]) if bases[0].bias is not None else None
        self.outputs = [base.out_features for base in bases]
        self.deltas: list[Delta] = []
        out = rank = 0
        for part, base in zip(parts, bases, strict=True):
            if isinstance(part, LoRALinear):
                r = part.lora_A.shape[0]
                self.deltas.append(Delta(part, slice(out, out + base.out_features), slice(rank, rank + r)))
                rank += r
            out += base.out_features
        layers = [delta.layer.lora_A for delta in self.deltas]
        self.a_RI = _fused(layers) if layers else self.weight_OI.new_empty(0, self.weight_OI.shape[1])
        self.a_grad_RI = torch.zeros_like(self.a_RI)

    def begin(self) -> None:
        """Start a step: gradients are zero, and the parameters' .grad are views that the backward adds to."""
        self.a_grad_RI.zero_()
        for delta in self.deltas:
            delta.layer.lora_A.grad = self.a_grad_RI[delta.ranks]
            delta.layer.lora_B.grad = torch.zeros_like(delta.layer.lora_B)

    def forward(self, x_TI: Tensor, residual_TO: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y [T,O] (plus `residual_TO`) and x A^T [T,R], which the backward needs."""
        if residual_TO is not None:
            y_TO = torch.addmm(residual_TO, x_TI, self.weight_OI.t())
            if self.bias_O is not None:
                y_TO += self.bias_O
        elif self.bias_O is not None:
            y_TO = torch.addmm(self.bias_O, x_TI, self.weight_OI.t())
        else:
            y_TO = x_TI @ self.weight_OI.t()
        xa_TR = x_TI @ self.a_RI.t()
        for delta in self.deltas:
            b, scale = delta.layer.lora_B.detach(), delta.layer.scale
            y_TO[:, delta.outputs].addmm_(xa_TR[:, delta.ranks], b.t(), alpha=scale)
        return y_TO, xa_TR

    def backward(self, grad_TO: Tensor, x_TI: Tensor, xa_TR: Tensor, to_input: bool = True) -> Tensor | None:
        """Add to the parameters' gradients; the gradient at x [T,I], unless nobody needs it."""
        grad_TR = grad_TO.new_empty(len(grad_TO), len(self.a_RI))
        for delta in self.deltas:
            part_TO, layer = grad_TO[:, delta.outputs], delta.layer
            assert layer.lora_B.grad is not None
            torch.mm(part_TO, layer.lora_B.detach(), out=grad_TR[:, delta.ranks])
            layer.lora_B.grad.addmm_(part_TO.t(), xa_TR[:, delta.ranks], alpha=layer.scale)
            grad_TR[:, delta.ranks] *= layer.scale
        self.a_grad_RI.addmm_(grad_TR.t(), x_TI)
        return (grad_TO @ self.weight_OI).addmm_(grad_TR, self.a_RI) if to_input else None


def base_of(part: nn.Module) -> nn.Linear:
    """The frozen layer under a LoRA, or the layer itself."""
    base = part.base if isinstance(part, LoRALinear) else part
    assert isinstance(base, nn.Linear)
    return base


def _fused(parts: Sequence[Tensor]) -> Tensor:
    """`parts` end to end, each made a view of the whole."""
    if len(parts) == 1:
        return parts[0].detach()
    whole = torch.cat([part.detach() for part in parts])
    for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = view
    return whole
