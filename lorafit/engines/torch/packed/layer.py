"""One decoder layer over packed tokens: attention and MLP, forward and backward, saving only what the backward needs.

Rows are the shared prefix first, then each sample's own tokens. Letters: T rows, S samples, H hidden, D head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorafit.engines.torch.packed import attention
from lorafit.engines.torch.packed.fused import FusedLinear
from lorafit.engines.torch.packed.parts import RMSNorm, rotate_, swiglu, swiglu_backward


@dataclass(frozen=True)
class Rows:
    """Where samples lie among a micro-batch's rows: `prefix` rows that all share, then [begin, end) of each one's own."""

    prefix: int
    own: list[tuple[int, int]]
    cos_T1h: Tensor
    sin_T1h: Tensor

    def segments(self) -> list[tuple[int, int]]:
        """The prefix as a segment of its own, if there is one, and each sample's part."""
        return [(0, self.prefix), *self.own] if self.prefix else self.own


@dataclass
class Saved:
    """What one layer's forward leaves for its backward."""

    x: Tensor
    rms1: Tensor
    xa_qkv: Tensor
    qkv: Tensor
    raw_qk: tuple[Tensor, Tensor, Tensor] | None  # before q/k norm, with 1 / rms of each
    attended: list[tuple[Tensor, Tensor]]
    out: Tensor
    xa_o: Tensor
    x2: Tensor
    rms2: Tensor
    xa_gate_up: Tensor
    gate_up: Tensor
    xa_down: Tensor


class PackedLayer:
    """Made from a decoder layer of transformers with Llama's parts; `q_norm` and `k_norm` where the model has them."""

    def __init__(self, layer: Any) -> None:
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
        return [self.qkv, self.o, self.gate_up, self.down]

    def forward(self, x: Tensor, rows: Rows, kept: Tensor | None) -> tuple[Tensor, Saved]:
        """The layer's output, at all rows, or only at those in `kept` (the last layer: nobody looks at the others)."""
        h, rms1 = self.norm1.forward(x)
        qkv, xa_qkv = self.qkv.forward(h)
        raw_qk = self._place_(qkv, rows)
        out, attended = self._attend(qkv, rows)
        x_kept = x
        if kept is not None:
            out, x_kept = out[kept], x[kept]
        x2, xa_o = self.o.forward(out, residual_TO=x_kept)
        h, rms2 = self.norm2.forward(x2)
        gate_up, xa_gate_up = self.gate_up.forward(h)
        y, xa_down = self.down.forward(swiglu(gate_up), residual_TO=x2)
        saved = Saved(x, rms1, xa_qkv, qkv, raw_qk, attended, out, xa_o, x2, rms2, xa_gate_up, gate_up, xa_down)
        return y, saved

    def backward(self, grad: Tensor, s: Saved, rows: Rows, kept: Tensor | None, to_input: bool) -> Tensor | None:
        """Add to the parameters' gradients; the gradient at x, unless this is the first layer."""
        grad_act = _there(self.down.backward(grad, swiglu(s.gate_up), s.xa_down))
        grad_gate_up = swiglu_backward(grad_act, s.gate_up)
        grad_h = _there(self.gate_up.backward(grad_gate_up, self.norm2.again(s.x2, s.rms2), s.xa_gate_up))
        grad_x2 = self.norm2.backward(grad_h, s.x2, s.rms2).add_(grad)
        grad_out = _there(self.o.backward(grad_x2, s.out, s.xa_o))
        if kept is not None:
            grad_out, grad_x2 = (_spread(g, kept, len(s.x)) for g in (grad_out, grad_x2))
        grad_qkv = self._attend_backward(grad_out, s, rows)
        self._place_backward_(grad_qkv, s.raw_qk, rows)
        grad_h1 = self.qkv.backward(grad_qkv, self.norm1.again(s.x, s.rms1), s.xa_qkv, to_input)
        return None if grad_h1 is None else self.norm1.backward(grad_h1, s.x, s.rms1).add_(grad_x2)

    # heads

    def _qk(self, qkv: Tensor) -> tuple[Tensor, Tensor]:
        heads = qkv.view(len(qkv), -1, self.width)
        return heads[:, : self.q_heads], heads[:, self.q_heads : self.q_heads + self.kv_heads]

    def _place_(self, qkv: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor] | None:
        """q/k norm and rotary positions in place; what the norm's backward needs."""
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

    def _place_backward_(self, grad_qkv: Tensor, raw: tuple[Tensor, Tensor, Tensor] | None, rows: Rows) -> None:
        heads = grad_qkv.view(len(grad_qkv), -1, self.width)[:, : self.q_heads + self.kv_heads]
        rotate_(heads, rows.cos_T1h, -rows.sin_T1h)
        if raw is None or self.qk_norms is None:
            return
        for part, x, inverse, norm in zip(self._qk(grad_qkv), self._qk(raw[0]), raw[1:], self.qk_norms, strict=True):
            part.copy_(norm.backward(part, x, inverse))

    def _split(self, x: Tensor, begin: int, end: int) -> Tensor:
        """Query-like rows [begin, end) of [T, heads*D] as [K,G,n,D]."""
        groups = self.q_heads // self.kv_heads
        return x[begin:end].view(end - begin, self.kv_heads, groups, self.width).permute(1, 2, 0, 3).contiguous()

    def _keys_values(self, qkv: Tensor, prefix: int, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values [K,L,D] that rows [begin, end) see: the prefix's and their own."""
        heads = qkv.view(len(qkv), -1, self.width)[:, self.q_heads :]
        seen = torch.cat([heads[:prefix], heads[begin:end]]) if prefix else heads[begin:end]
        k, v = seen.permute(1, 0, 2).contiguous().split(self.kv_heads)
        return k, v

    def _attend(self, qkv: Tensor, rows: Rows) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        out = qkv.new_empty(len(qkv), self.q_heads * self.width)
        attended = []
        for begin, end in rows.segments():
            k, v = self._keys_values(qkv, min(rows.prefix, begin), begin, end)
            q = self._split(qkv[:, : self.q_heads * self.width], begin, end)
            attended.append(attention.forward(q, k, v, self.scale))
            out[begin:end] = _joined(attended[-1][0])
        return out, attended

    def _attend_backward(self, grad_out: Tensor, s: Saved, rows: Rows) -> Tensor:
        """The gradient at q, k, v [T, heads*D], positions and norms still in; the prefix's keys sum over samples."""
        grad_qkv = torch.empty_like(s.qkv)
        grad_kv = grad_qkv.view(len(grad_qkv), -1, self.width)[:, self.q_heads :]
        width = self.q_heads * self.width
        grad_kv[: rows.prefix] = 0
        for (begin, end), attended in zip(rows.segments(), s.attended, strict=True):
            prefix = min(rows.prefix, begin)
            k, v = self._keys_values(s.qkv, prefix, begin, end)
            q, grad = self._split(s.qkv[:, :width], begin, end), self._split(grad_out, begin, end)
            grad_q, grad_k, grad_v = attention.backward(grad, q, k, v, attended, self.scale)
            grad_qkv[begin:end, :width] = _joined(grad_q)
            both = torch.cat([grad_k, grad_v]).permute(1, 0, 2)
            if begin >= rows.prefix:
                grad_kv[begin:end] = both[prefix:]
                grad_kv[:prefix] += both[:prefix]
            else:
                grad_kv[begin:end] += both
        return grad_qkv


def norm_of(module: Any) -> RMSNorm:
    return RMSNorm(module.weight.detach(), float(module.variance_epsilon))


def _joined(x_KGnD: Tensor) -> Tensor:
    return x_KGnD.permute(2, 0, 1, 3).reshape(x_KGnD.shape[2], -1)


def _spread(x: Tensor, kept: Tensor, rows: int) -> Tensor:
    """`x` at the rows `kept` of `rows`, zero elsewhere."""
    return x.new_zeros(rows, x.shape[1]).index_copy_(0, kept, x)


def _there(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def looks_like_llama(layer: nn.Module) -> bool:
    """Has this decoder layer the parts, by name and kind, that PackedLayer computes? Numbers are checked at load."""
    mixer, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    linears = [getattr(mixer, f"{n}_proj", None) for n in "qkvo"] + [
        getattr(mlp, f"{n}_proj", None) for n in ("gate", "up", "down")
    ]
    bases = [getattr(linear, "base", linear) for linear in linears]
    norms = [getattr(layer, name, None) for name in ("input_layernorm", "post_attention_layernorm")]
    plain = all(type(base) is nn.Linear for base in bases) and all(hasattr(n, "variance_epsilon") for n in norms)
    silu = type(getattr(mlp, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")
    return plain and silu and getattr(mixer, "sliding_window", None) is None and hasattr(mixer, "head_dim")
