"""One decoder layer over packed tokens: attention and MLP, forward and backward, saving only what the backward needs.

Letters: T rows, K key heads, G query heads a key head, D head width, n rows of one sample.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lorafit.engines.torch.lora import DropoutKeys
from lorafit.engines.torch.low_bit_linear import LowBitLinear
from lorafit.engines.torch.packed import attention
from lorafit.engines.torch.packed.fused_linear import FusedLinear
from lorafit.engines.torch.packed.ops import RMSNorm, rotate_, swiglu, swiglu_backward
from lorafit.engines.torch.packed.rows import RowLayout, Segment, SharedKeysValues

Thing = TypeVar("Thing")


@dataclass
class Recomputable:
    """Activations that are recomputed from the layer's input and attention output, without redoing attention.

    `rms1` and `rms2` are 1 / rms of the two norms, `xa_*` dropout(x) A^T of a fused linear layer, and `x2` the input of
    the second norm.
    """

    rms1: Tensor
    xa_qkv: Tensor
    qkv: Tensor
    raw_qk: tuple[Tensor, Tensor, Tensor] | None  # q and k before their norms, and 1 / rms of each
    xa_o: Tensor
    x2: Tensor
    rms2: Tensor
    xa_gate_up: Tensor
    gate_up: Tensor


@dataclass
class LayerActivations:
    """Activations that one layer's forward saves for its backward; `recomputable` is None if the layer recomputes."""

    x: Tensor
    out: Tensor  # attention's output at the kept rows
    lse_KGT: Tensor
    xa_down: Tensor
    recomputable: Recomputable | None


class PackedLayer:
    """A decoder layer built from a Llama-like layer of transformers, with its `q_norm` and `k_norm` if any."""

    def __init__(self, layer: Any, dropout: DropoutKeys) -> None:
        self.dropout = dropout
        mixer, mlp = layer.self_attn, layer.mlp
        self.norm1, self.norm2 = norm_of(layer.input_layernorm), norm_of(layer.post_attention_layernorm)
        self.qkv = FusedLinear([mixer.q_proj, mixer.k_proj, mixer.v_proj])
        self.o, self.down = FusedLinear([mixer.o_proj]), FusedLinear([mlp.down_proj])
        self.gate_up = FusedLinear([mlp.gate_proj, mlp.up_proj])
        self.qk_norms = (norm_of(mixer.q_norm), norm_of(mixer.k_norm)) if hasattr(mixer, "q_norm") else None
        self.width, self.scale = int(mixer.head_dim), float(mixer.scaling)
        self.q_heads, self.kv_heads = (outputs // self.width for outputs in self.qkv.outputs[:2])

    @property
    def linears(self) -> list[FusedLinear]:
        """Return the fused linear layers."""
        return [self.qkv, self.o, self.gate_up, self.down]

    def forward(self, x: Tensor, rows: RowLayout, recompute: bool = False) -> tuple[Tensor, LayerActivations]:
        """Return the layer's output at the kept rows, and the activations for the backward."""
        rms1, xa_qkv, qkv, raw_qk = self._project(x, rows)
        out, lse = self._attend(qkv, rows)
        with self.dropout.only(rows.kept):
            rest = Recomputable(rms1, xa_qkv, qkv, raw_qk, *self._after_attention(x, out, rows))
            y, xa_down = self.down.forward(swiglu(rest.gate_up)[0], residual_TO=rest.x2)
        return y, LayerActivations(x, out, lse, xa_down, None if recompute else rest)

    def backward(self, grad: Tensor, s: LayerActivations, rows: RowLayout, to_input: bool) -> Tensor | None:
        """Add to the parameters' gradients; return the gradient at x, or None unless `to_input` (the first layer)."""
        projected = None if s.recomputable else self._project(s.x, rows)
        with self.dropout.only(rows.kept):
            rest = s.recomputable or Recomputable(*_not_none(projected), *self._after_attention(s.x, s.out, rows))
            grad_x2 = self._mlp_backward(grad, s, rest)
            grad_out = _not_none(self.o.backward(grad_x2, s.out, rest.xa_o))
        dots = self._split_heads(grad_out * s.out).sum(-1)
        if rows.kept is not None:
            grad_out, grad_x2 = (_scatter_rows(g, rows.kept, len(s.x)) for g in (grad_out, grad_x2))
            dots = dots.new_zeros(s.lse_KGT.shape).index_copy_(2, rows.kept, dots)
        grad_qkv = self._attend_backward(grad_out, rest.qkv, (s.lse_KGT, dots), rows)
        self._norm_and_rotate_backward_(grad_qkv, rest.raw_qk, rows)
        grad_h1 = self.qkv.backward(grad_qkv, self.norm1.recompute(s.x, rest.rms1), rest.xa_qkv, to_input)
        return None if grad_h1 is None else self.norm1.backward(grad_h1, s.x, rest.rms1).add_(grad_x2)

    def keys_values(self, saved: LayerActivations) -> Tensor:
        """Return the keys and values [T, 2*heads*D] that the layer's forward computed."""
        assert saved.recomputable is not None
        return saved.recomputable.qkv[:, self.q_heads * self.width :]

    # before and after attention

    def _project(
        self, x: Tensor, rows: RowLayout
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor] | None]:
        h, rms1 = self.norm1.forward(x)
        qkv, xa_qkv = self.qkv.forward(h)
        return rms1, xa_qkv, qkv, self._norm_and_rotate_(qkv, rows)

    def _after_attention(
        self, x: Tensor, out: Tensor, rows: RowLayout
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        x2, xa_o = self.o.forward(out, residual_TO=x if rows.kept is None else x[rows.kept])
        h, rms2 = self.norm2.forward(x2)
        gate_up, xa_gate_up = self.gate_up.forward(h)
        return xa_o, x2, rms2, xa_gate_up, gate_up

    def _mlp_backward(self, grad: Tensor, s: LayerActivations, rest: Recomputable) -> Tensor:
        act, silu = swiglu(rest.gate_up)
        grad_act = _not_none(self.down.backward(grad, act, s.xa_down))
        del act
        grad_gate_up = swiglu_backward(grad_act, rest.gate_up, silu)
        del silu, grad_act
        h = self.norm2.recompute(rest.x2, rest.rms2)
        grad_h = _not_none(self.gate_up.backward(grad_gate_up, h, rest.xa_gate_up))
        return self.norm2.backward(grad_h, rest.x2, rest.rms2).add_(grad)

    # heads

    def _qk(self, qkv: Tensor) -> tuple[Tensor, Tensor]:
        heads = qkv.view(len(qkv), -1, self.width)
        return heads[:, : self.q_heads], heads[:, self.q_heads : self.q_heads + self.kv_heads]

    def _norm_and_rotate_(self, qkv: Tensor, rows: RowLayout) -> tuple[Tensor, Tensor, Tensor] | None:
        """Apply q/k norm and rotary positions in place; return what the norm's backward needs."""
        q, k = self._qk(qkv)
        raw = None
        if self.qk_norms is not None:
            raw_qk = qkv[:, : (self.q_heads + self.kv_heads) * self.width].clone()
            inverses = []
            for part, norm in zip((q, k), self.qk_norms, strict=True):
                normed, inverse = norm.forward(part)
                part.copy_(normed)
                inverses.append(inverse)
            raw = (raw_qk, inverses[0], inverses[1])
        rotate_(qkv.view(len(qkv), -1, self.width)[:, : self.q_heads + self.kv_heads], rows.cos_T1h, rows.sin_T1h)
        return raw

    def _norm_and_rotate_backward_(
        self, grad_qkv: Tensor, raw: tuple[Tensor, Tensor, Tensor] | None, rows: RowLayout
    ) -> None:
        heads = grad_qkv.view(len(grad_qkv), -1, self.width)[:, : self.q_heads + self.kv_heads]
        rotate_(heads, rows.cos_T1h, -rows.sin_T1h)
        if raw is None or self.qk_norms is None:
            return
        for part, x, inverse, norm in zip(self._qk(grad_qkv), self._qk(raw[0]), raw[1:], self.qk_norms, strict=True):
            part.copy_(norm.backward(part, x, inverse))

    def _split_heads(self, x: Tensor) -> Tensor:
        """View query-like rows [T, heads*D], which may have more columns behind, as [K,G,T,D]."""
        x = x[:, : self.q_heads * self.width]
        return x.view(len(x), self.kv_heads, self.q_heads // self.kv_heads, self.width).permute(1, 2, 0, 3)

    def _visible_keys_values(self, qkv: Tensor, segment: Segment, shared: SharedKeysValues | None) -> Tensor:
        """Return the keys and values [2K,L,D] that a sample's rows see: its shared prefix and its own rows."""
        own = qkv[segment.own, self.q_heads * self.width :]
        seen = own if shared is None else torch.cat([shared.keys_values[segment.shared], own])
        return seen.view(len(seen), -1, self.width).permute(1, 0, 2).contiguous()

    def _attend(self, qkv: Tensor, rows: RowLayout) -> tuple[Tensor, Tensor]:
        """Return attention's output at the kept rows, and the log-sum-exp [K,G,T] at all rows."""
        out = qkv.new_empty(len(qkv), self.q_heads * self.width)
        lse_KGT = qkv.new_empty(self.kv_heads, self.q_heads // self.kv_heads, len(qkv))
        q_KGTD, out_KGTD = self._split_heads(qkv), self._split_heads(out)
        for segment in rows.segments:
            seen, own = self._visible_keys_values(qkv, segment, rows.shared), segment.own
            attention.forward(q_KGTD[:, :, own], seen, self.scale, out_KGTD[:, :, own], lse_KGT[:, :, own])
        return out if rows.kept is None else out[rows.kept], lse_KGT

    def _attend_backward(self, grad_out: Tensor, qkv: Tensor, saved: tuple[Tensor, Tensor], rows: RowLayout) -> Tensor:
        """Return the gradient [T, heads*D] at q, k and v after q/k norm and rotary positions.

        Each sample adds its gradient at the shared keys and values to `rows.shared.grad`. In the pass of the shared
        prefix itself, `rows.read.grad` is added: the gradients from the samples that attend to the prefix.
        """
        grad_qkv = torch.empty_like(qkv)
        grad_kv = grad_qkv[:, self.q_heads * self.width :]
        q_KGTD, grad_KGTD, grad_q_KGTD = (self._split_heads(x) for x in (qkv, grad_out, grad_qkv))
        for segment in rows.segments:
            seen, own = self._visible_keys_values(qkv, segment, rows.shared), segment.own
            parts = tuple(x[:, :, own] for x in saved)
            grad_seen = attention.backward(
                grad_KGTD[:, :, own], q_KGTD[:, :, own], seen, (parts[0], parts[1]), self.scale, grad_q_KGTD[:, :, own]
            )
            grad_heads = grad_seen.permute(1, 0, 2)
            before = seen.shape[1] - (own.stop - own.start)
            grad_kv[own].unflatten(1, (-1, self.width)).copy_(grad_heads[before:])
            if rows.shared is not None:
                rows.shared.grad[segment.shared].unflatten(1, (-1, self.width)).add_(grad_heads[:before])
        if rows.reader_gradients is not None:
            grad_kv += rows.reader_gradients.grad
        return grad_qkv


def norm_of(module: Any) -> RMSNorm:
    """Return an RMSNorm with the weight and epsilon of `module`."""
    return RMSNorm(module.weight.detach(), float(module.variance_epsilon))


def _scatter_rows(x: Tensor, kept: Tensor, rows: int) -> Tensor:
    """Return a tensor of `rows` rows: `x` at the rows `kept`, zero elsewhere."""
    return x.new_zeros(rows, x.shape[1]).index_copy_(0, kept, x)


def _not_none(x: Thing | None) -> Thing:
    assert x is not None
    return x


def looks_like_llama(layer: nn.Module) -> bool:
    """Return whether the decoder layer has the parts, by name and type, that PackedLayer computes.

    Whether the results are right is checked when the model is loaded.
    """
    mixer, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    linears = [getattr(mixer, f"{n}_proj", None) for n in "qkvo"] + [
        getattr(mlp, f"{n}_proj", None) for n in ("gate", "up", "down")
    ]
    bases = [getattr(linear, "base", linear) for linear in linears]
    norms = [getattr(layer, name, None) for name in ("input_layernorm", "post_attention_layernorm")]
    plain = all(type(base) in (nn.Linear, LowBitLinear) or type(base).__name__ == "Linear4bit" for base in bases)
    silu = type(getattr(mlp, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")
    return plain and silu and all(hasattr(n, "variance_epsilon") for n in norms) and hasattr(mixer, "head_dim")
