"""One decoder layer over packed samples, with few matmuls and few activations kept for the backward pass.

Each checkpointed piece ends in a matmul whose result the backward pass of the piece does not need. MLX is lazy, so it
does not recompute that matmul. It recomputes only norms, the activation function and the narrow A x, and keeps no
intermediate results. Letters: T tokens, H hidden, D head width, I intermediate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
from mlx import nn

from lorafit.engines.mlx.attention import AttentionKind, attention, trained_attention
from lorafit.engines.mlx.lora import LinearGroup, MLXLoRADelta, Params
from lorafit.engines.mlx.rope import Rope
from lorafit.run_folders.adapter import lora_names

Norm = Callable[[mx.array], mx.array]


@dataclass(frozen=True)
class LayerFacts:
    """Settings of a layer that its modules do not hold.

    `gate` is swiglu or geglu; with `post_norms`, the output of each branch is normalized too.
    """

    name: str  # model.layers.0, for example, as in PEFT files
    kind: AttentionKind
    rope: Rope
    heads: int
    key_heads: int
    gate: Callable[[mx.array, mx.array], mx.array]
    post_norms: bool


class Layer:
    """One layer of a dense decoder with Llama's or Gemma's architecture, on the weights of MLX's `module`."""

    def __init__(self, module: Any, facts: LayerFacts, delta: MLXLoRADelta) -> None:
        self.facts, self.delta, attn, mlp = facts, delta, module.self_attn, module.mlp
        self.qkv = self._stack("self_attn", attn, ("qkv_proj",), ("q_proj", "k_proj", "v_proj"), delta)
        self.o = self._stack("self_attn", attn, ("o_proj",), (), delta)
        self.gate_up = self._stack("mlp", mlp, ("gate_up_proj",), ("gate_proj", "up_proj"), delta)
        self.down = self._stack("mlp", mlp, ("down_proj",), (), delta)
        self.q_norm, self.k_norm = norm_of(attn, "q_norm"), norm_of(attn, "k_norm")
        self.before_attention = norm_of(module, "input_layernorm")
        after, before_mlp = "post_attention_layernorm", "pre_feedforward_layernorm"
        self.after_attention = norm_of(module, after if facts.post_norms else None)
        self.before_mlp = norm_of(module, before_mlp if facts.post_norms else after)
        self.after_mlp = norm_of(module, "post_feedforward_layernorm" if facts.post_norms else None)

    def _stack(
        self, parent: str, owner: Any, fused: Sequence[str], apart: Sequence[str], delta: MLXLoRADelta
    ) -> LinearGroup:
        names = fused if fused[0] in owner else apart
        return LinearGroup({f"{self.facts.name}.{parent}.{name}": owner[name] for name in names}, delta)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The linear layers that can have an adapter, by name."""
        return {**self.qkv.modules, **self.o.modules, **self.gate_up.modules, **self.down.modules}

    def own_params(self, params: Params) -> Params:
        """Return the adapter weights of this layer."""
        return {name: params[name] for module in self.modules for name in lora_names(module) if name in params}

    def __call__(self, params: Params, x_TH: mx.array, lengths: list[int], rows: mx.array | None) -> mx.array:
        """Map x [T,H] to [T,H]. With `rows`, only these rows pass through the MLP and are returned."""
        keys_T = self.delta.keys_T  # captured, not passed: MLX would differentiate every argument
        q, k, v = mx.checkpoint(partial(self._queries_keys_values, keys_T))(params, x_TH)
        out = self._attend_samples(self._split_heads(q, k, v), lengths)
        if rows is not None:
            x_TH, out = x_TH[rows], out[rows]
            keys_T = None if keys_T is None else keys_T[rows]
        x_TH = x_TH + self.after_attention(self.o(keys_T, params, out)[0])
        gate, up = mx.checkpoint(partial(self._gates, keys_T))(params, x_TH)
        return x_TH + self.after_mlp(mx.checkpoint(partial(self._down_projection, keys_T))(params, gate, up))

    def next_hidden(self, params: Params, x_TH: mx.array, cache: Any) -> mx.array:
        """Compute the next tokens of one sample; `cache` (mlx_lm's) holds its earlier keys and values."""
        seen = cache.offset
        q, k, v = self._split_heads(*self._queries_keys_values(None, params, x_TH))
        k, v = cache.update_and_fetch(self.facts.rope(k, seen), v)
        out = attention(self.facts.kind, self.facts.rope(q, seen), k, v)
        x_TH = x_TH + self.after_attention(self.o(None, params, _flat(out))[0])
        return x_TH + self.after_mlp(self._down_projection(None, params, *self._gates(None, params, x_TH)))

    def _queries_keys_values(self, keys_T: mx.array | None, params: Params, x_TH: mx.array) -> list[mx.array]:
        outs = self.qkv(keys_T, params, self.before_attention(x_TH))
        if len(outs) > 1:
            return outs
        width = outs[0].shape[-1] // (self.facts.heads + 2 * self.facts.key_heads)
        ends = [width * self.facts.heads, width * (self.facts.heads + self.facts.key_heads)]
        return mx.split(outs[0], ends, axis=-1)

    def _gates(self, keys_T: mx.array | None, params: Params, x_TH: mx.array) -> list[mx.array]:
        outs = self.gate_up(keys_T, params, self.before_mlp(x_TH))
        return outs if len(outs) > 1 else mx.split(outs[0], 2, axis=-1)

    def _down_projection(self, keys_T: mx.array | None, params: Params, gate_TI: mx.array, up_TI: mx.array) -> mx.array:
        return self.down(keys_T, params, self.facts.gate(gate_TI, up_TI))[0]

    def _split_heads(self, q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Split into heads, [T, heads x D] -> [1,heads,T,D]; normalize queries and keys where the model does."""
        tokens, heads, key_heads = q.shape[0], self.facts.heads, self.facts.key_heads
        q = self.q_norm(q.reshape(1, tokens, heads, -1)).transpose(0, 2, 1, 3)
        k = self.k_norm(k.reshape(1, tokens, key_heads, -1)).transpose(0, 2, 1, 3)
        return q, k, v.reshape(1, tokens, key_heads, -1).transpose(0, 2, 1, 3)

    def _attend_samples(self, qkv: tuple[mx.array, mx.array, mx.array], lengths: list[int]) -> mx.array:
        """Return the attention of each sample to itself [T, heads x D]."""
        attend, rope = trained_attention(self.facts.kind), self.facts.rope
        cuts = [sum(lengths[: i + 1]) for i in range(len(lengths) - 1)]
        parts = zip(*(mx.split(t, cuts, axis=2) for t in qkv), strict=True)
        outs = [attend(rope(q), rope(k), v) for q, k, v in parts]
        return _flat(outs[0] if len(outs) == 1 else mx.concatenate(outs, axis=2))


def norm_of(owner: Any, name: str | None) -> Norm:
    """Return the RMS norm called `name`, or the identity if there is none. Gemma stores its norm weights minus 1."""
    if name is None or name not in owner:
        return lambda x: x
    module = owner[name]
    weight = module.weight if isinstance(module, nn.RMSNorm) else 1.0 + module.weight
    return lambda x: mx.fast.rms_norm(x, weight, module.eps)


def _flat(x: mx.array) -> mx.array:
    """Reshape [1,heads,S,D] -> [S, heads x D]."""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[2], -1)
