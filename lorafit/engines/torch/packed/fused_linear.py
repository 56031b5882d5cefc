"""Several linear layers over one input, fused into one matmul: frozen weights and LoRA's A, end to end.

The modules' own weights are views of the fused ones, so nothing is stored twice. All other users of the modules
(saving, generation, transformers' forward) see the same values. 4-bit weights are not fused.

Letters: T tokens, I inputs, O outputs of all parts together, R ranks of all parts together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorafit.engines.torch.lora import LoRALinear
from lorafit.engines.torch.low_bit_linear import is_4bit, low_bit_matmul, low_bit_matmul_backward


@dataclass(frozen=True)
class FusedDelta:
    """The LoRA of one part: its slices of the fused outputs and of the fused ranks."""

    layer: LoRALinear
    outputs: slice
    ranks: slice


class FusedLinear:
    """y = x W^T + b, plus each part's LoRA delta, with a hand-written forward and backward."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        bases = [base_of(part) for part in parts]
        weights = [base.weight for base in bases]
        self.weights: list[Tensor] = list(weights) if any(map(is_4bit, weights)) else [_fused(weights)]
        self.bias_O = _fused([base.bias for base in bases]) if bases[0].bias is not None else None
        self.outputs = [base.out_features for base in bases]
        self.deltas: list[FusedDelta] = []
        out = rank = 0
        for part, base in zip(parts, bases, strict=True):
            if isinstance(part, LoRALinear):
                r = part.lora_A.shape[0]
                self.deltas.append(FusedDelta(part, slice(out, out + base.out_features), slice(rank, rank + r)))
                rank += r
            out += base.out_features
        layers = [delta.layer.lora_A for delta in self.deltas]
        self.a_RI = _fused(layers) if layers else torch.empty(0, bases[0].in_features)
        self.a_grad_RI = torch.zeros_like(self.a_RI)
        self.b_grads_RO: list[Tensor] = []

    def start_step(self) -> None:
        """Start a step: zero the gradients, and make each A's .grad a view that backward() adds to."""
        self.a_grad_RI.zero_()
        for delta in self.deltas:
            delta.layer.lora_A.grad = self.a_grad_RI[delta.ranks]
            delta.layer.lora_B.grad = None
        self.b_grads_RO = [delta.layer.lora_B.new_zeros(delta.layer.lora_B.shape[::-1]) for delta in self.deltas]

    def finish_step(self) -> None:
        """Finish a step: give each B its gradient, accumulated as [R,O] until now since those matmuls are faster."""
        for delta, grad_RO in zip(self.deltas, self.b_grads_RO, strict=True):
            delta.layer.lora_B.grad = grad_RO.t().contiguous()
        self.b_grads_RO = []

    def forward(self, x_TI: Tensor, residual_TO: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return y [T,O] (plus `residual_TO`), and dropout(x) A^T [T,R], which the backward needs."""
        xa_TR = self.lora_a_matmul(x_TI)
        return self.recompute(x_TI, xa_TR, residual_TO), xa_TR

    def lora_a_matmul(self, x_TI: Tensor) -> Tensor:
        """Return dropout(x) A^T [T,R]."""
        if not self._drops():
            return x_TI @ self.a_RI.t()
        xa_TR = x_TI.new_empty(len(x_TI), len(self.a_RI))
        for delta in self.deltas:
            torch.mm(delta.layer.apply_dropout(x_TI), self.a_RI[delta.ranks].t(), out=xa_TR[:, delta.ranks])
        return xa_TR

    def recompute(self, x_TI: Tensor, xa_TR: Tensor, residual_TO: Tensor | None = None) -> Tensor:
        """Return y [T,O] from x and from the dropout(x) A^T that forward() returned."""
        y_TO = low_bit_matmul(x_TI, self.weights, self.bias_O if residual_TO is None else residual_TO)
        if residual_TO is not None and self.bias_O is not None:
            y_TO += self.bias_O
        for delta in self.deltas:
            if not delta.layer.delta_enabled:
                continue
            b, scale = delta.layer.lora_B.detach(), delta.layer.scale
            y_TO[:, delta.outputs].addmm_(xa_TR[:, delta.ranks], b.t(), alpha=scale)
        return y_TO

    def backward(self, grad_TO: Tensor, x_TI: Tensor, xa_TR: Tensor, to_input: bool = True) -> Tensor | None:
        """Add to the parameters' gradients; return the gradient at x [T,I], or None unless `to_input`."""
        grad_TR = grad_TO.new_empty(len(grad_TO), len(self.a_RI))
        for delta, b_grad_RO in zip(self.deltas, self.b_grads_RO, strict=True):
            part_TO, layer = grad_TO[:, delta.outputs], delta.layer
            torch.mm(part_TO, layer.lora_B.detach(), out=grad_TR[:, delta.ranks])
            b_grad_RO.addmm_(xa_TR[:, delta.ranks].t(), part_TO, alpha=layer.scale)
            grad_TR[:, delta.ranks] *= layer.scale
        grad_TI = low_bit_matmul_backward(grad_TO, self.weights) if to_input else None
        if self._drops():
            self._backward_dropped(grad_TR, x_TI, grad_TI)
            return grad_TI
        self.a_grad_RI.addmm_(grad_TR.t(), x_TI)
        return grad_TI if grad_TI is None else grad_TI.addmm_(grad_TR, self.a_RI)

    def _drops(self) -> bool:
        return bool(self.deltas) and self.deltas[0].layer.dropout_active

    def _backward_dropped(self, grad_TR: Tensor, x_TI: Tensor, grad_TI: Tensor | None) -> None:
        """Add A's gradients, and A's share of the gradient at x; each part has its own dropout mask."""
        for delta in self.deltas:
            grad, ranks, kept_TI = grad_TR[:, delta.ranks], delta.ranks, delta.layer.dropout_mask(x_TI.shape[1])
            self.a_grad_RI[ranks].addmm_(grad.t(), x_TI * kept_TI)
            if grad_TI is not None:
                grad_TI += (grad @ self.a_RI[ranks]).mul_(kept_TI)


def base_of(part: nn.Module) -> nn.Linear:
    """Return the frozen layer in a LoRALinear, or the layer itself."""
    base = part.base if isinstance(part, LoRALinear) else part
    assert isinstance(base, nn.Linear)
    return base


def _fused(parts: Sequence[Tensor]) -> Tensor:
    """Return `parts` end to end, and make each a view of the result; parts that already lie so are not moved."""
    sizes, first = [part.numel() for part in parts], parts[0].detach()
    storage = first.untyped_storage().data_ptr()
    places = [first.storage_offset() + sum(sizes[:index]) for index in range(len(parts))]
    if all(
        p.untyped_storage().data_ptr() == storage and p.storage_offset() == at
        for p, at in zip(parts, places, strict=True)
    ):
        return first.as_strided((sum(len(part) for part in parts), *first.shape[1:]), first.stride())
    whole = torch.cat([part.detach() for part in parts])
    for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = view
    return whole
