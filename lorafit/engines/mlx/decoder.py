"""lorafit's own decoder for packed samples of the dense model families, on the weights that mlx_lm loads.

Letters: T tokens, N targets, H hidden, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models.cache import KVCache
from transformers import PretrainedConfig

from lorafit.data.micro_batch import MicroBatch
from lorafit.engines.mlx.arithmetic import geglu, swiglu
from lorafit.engines.mlx.attention import AttentionKind
from lorafit.engines.mlx.layer import Layer, LayerFacts, norm_of
from lorafit.engines.mlx.lora import MLXLoRADelta, Params
from lorafit.engines.mlx.loss import MLXHead
from lorafit.engines.mlx.matrix import matrix_of
from lorafit.engines.mlx.rope import make_rope

# Families with Llama's layers, and families with Gemma's: a norm after each branch, and a scaled embedding.
LLAMAS = ("llama", "mistral", "qwen2", "qwen3", "phi3")
GEMMAS = ("gemma2", "gemma3_text")
GATES = {"silu": swiglu, "gelu_pytorch_tanh": geglu}


@dataclass(frozen=True)
class DecoderInput:
    """A micro-batch for MLX: `ids` [T], `lengths` of the samples, `targets` [N], `before_targets` [N]: positions."""

    ids: mx.array
    lengths: list[int]
    before_targets: mx.array
    targets: mx.array

    @classmethod
    def of(cls, micro: MicroBatch) -> "DecoderInput":
        """Convert `micro`."""
        places = np.flatnonzero(micro.target_mask)
        return cls(
            mx.array(micro.input_ids),
            np.diff(micro.segments).tolist(),
            mx.array((places - 1).astype(np.int32)),
            mx.array(micro.input_ids[places]),
        )


class MLXDecoder:
    """Embedding, layers, last norm and LM head of a dense model.

    The first `recompute` layers use gradient checkpointing.
    `model` is mlx_lm's text model, `prefix` the decoder's name in PEFT files, `config` the settings that transformers
    reads.
    """

    def __init__(self, model: Any, prefix: str, config: PretrainedConfig, delta: MLXLoRADelta) -> None:
        self.embedding = matrix_of(model.model.embed_tokens)
        self.embedding_scale = config.hidden_size**0.5 if config.model_type in GEMMAS else 1.0
        facts = layer_facts(model.model.layers, prefix, config)
        assert facts is not None
        self.layers = [Layer(m, f, delta) for m, f in zip(model.model.layers, facts, strict=True)]
        self.last_norm = norm_of(model.model, "norm")
        self.head = MLXHead(head_matrix(model), softcap=getattr(config, "final_logit_softcapping", None))
        self.recompute = 0

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The linear layers that can have an adapter, by name."""
        return {name: module for layer in self.layers for name, module in layer.modules.items()}

    def hidden(self, params: Params, rows: DecoderInput) -> mx.array:
        """Return the last hidden state before each target [N,H]."""
        x_TH = self._embedded(rows.ids)
        for index, layer in enumerate(self.layers):
            last = rows.before_targets if index == len(self.layers) - 1 else None
            run = partial(_run_layer, layer, rows.lengths, last)
            x_TH = (mx.checkpoint(run) if index < self.recompute else run)(layer.own_params(params), x_TH)
        return self.last_norm(x_TH)

    def new_cache(self) -> list[Any]:
        """Return an empty KV cache for each layer."""
        return [KVCache() for _layer in self.layers]

    def next_logits(self, params: Params, ids: Sequence[int], cache: list[Any]) -> mx.array:
        """Return the logits [V] of the token after `ids`; `cache` holds the tokens before `ids`."""
        x_TH = self._embedded(mx.array(ids))
        for layer, own_cache in zip(self.layers, cache, strict=True):
            x_TH = layer.next_hidden(params, x_TH, own_cache)
        return self.head(self.last_norm(x_TH[-1:]))[0]

    def _embedded(self, ids_T: mx.array) -> mx.array:
        rows = self.embedding.rows(ids_T)
        return rows if self.embedding_scale == 1.0 else rows * mx.array(self.embedding_scale, rows.dtype)


def _run_layer(layer: Layer, lengths: list[int], rows: mx.array | None, params: Params, x_TH: mx.array) -> mx.array:
    return layer(params, x_TH, lengths, rows)


def head_matrix(model: Any) -> Any:
    """Return the matrix that computes logits: the LM head, or the embedding where the two are tied."""
    return matrix_of(model.lm_head if "lm_head" in model else model.model.embed_tokens)


def layer_facts(modules: Sequence[Any], prefix: str, config: PretrainedConfig) -> list[LayerFacts] | None:
    """Return the facts of each layer; None for a model that `MLXDecoder` does not support."""
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", "")
    if config.model_type not in LLAMAS + GEMMAS or activation not in GATES:
        return None
    key_heads = config.num_key_value_heads or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kinds = layer_kinds(config)
    ropes = {kind: make_rope(config, kind, head_dim) for kind in set(kinds)}
    found = []
    for index, kind in enumerate(kinds):
        if (rope := ropes[kind]) is None:
            return None
        found.append(
            LayerFacts(
                name=f"{prefix}.layers.{index}",
                kind=AttentionKind(attention_scale(config, head_dim), window(config, kind), softcap(config)),
                rope=rope,
                heads=config.num_attention_heads,
                key_heads=key_heads,
                gate=GATES[activation],
                post_norms=config.model_type in GEMMAS,
            )
        )
    return found


def layer_kinds(config: PretrainedConfig) -> list[str]:
    """Return full_attention or sliding_attention for each layer, as in transformers."""
    kinds: list[str] | None = getattr(config, "layer_types", None)
    if kinds is None:
        one = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
        kinds = [one] * config.num_hidden_layers
    return kinds


def window(config: PretrainedConfig, kind: str) -> int | None:
    """Return the attention window of a layer of `kind`, in tokens; None: no window."""
    return config.sliding_window if kind == "sliding_attention" else None


def softcap(config: PretrainedConfig) -> float | None:
    """Return the softcap of the attention scores; None: no softcap."""
    cap: float | None = getattr(config, "attn_logit_softcapping", None)
    return cap


def attention_scale(config: PretrainedConfig, head_dim: int) -> float:
    """Return the scale of the attention scores: 1 / sqrt(query_pre_attn_scalar), by default 1 / sqrt(head_dim)."""
    return float((getattr(config, "query_pre_attn_scalar", None) or head_dim) ** -0.5)
