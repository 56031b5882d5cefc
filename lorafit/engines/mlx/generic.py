"""Generic path: mlx_lm's own model with adapters in its linear layers, for models that `MLXDecoder` does not support.

A mask [T,T] separates packed samples; mlx_lm requests the mask from a cache. If a model does not request it, samples
are computed one by one. Letters: T tokens, N targets, H hidden, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache
from transformers import PretrainedConfig

from lorafit.engines.mlx.decoder import DecoderInput, head_matrix
from lorafit.engines.mlx.lora import LinearGroup, MLXLoRADelta, Params
from lorafit.engines.mlx.loss import MLXHead
from lorafit.models.lora_targets import is_adaptable


class ActiveParams:
    """Holder of the adapter weights of the current pass, which all layers read.

    The weights are arguments of the differentiated function, so that MLX can compute their gradients.
    """

    def __init__(self) -> None:
        self.params: Params = {}


class MLXLoRALinear(nn.Module):
    """A frozen linear layer with its adapter; it replaces mlx_lm's layer."""

    def __init__(self, name: str, module: nn.Module, shared: ActiveParams, delta: MLXLoRADelta) -> None:
        super().__init__()
        self._stack, self._shared, self._delta = LinearGroup({name: module}, delta), shared, delta

    def __call__(self, x: mx.array) -> mx.array:
        out = self._stack(self._delta.keys_T, self._shared.params, x.reshape(-1, x.shape[-1]))[0]
        return out.reshape(*x.shape[:-1], -1)


class SeparateSamplesMask:
    """A stand-in for a layer's empty KV cache that provides the mask between packed samples."""

    offset = 0

    def __init__(self, lengths: list[int]) -> None:
        owner = mx.concatenate([mx.full((length,), i, mx.int32) for i, length in enumerate(lengths)])
        self._same, self.asked = owner[:, None] == owner[None], False

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Return `keys` and `values` unchanged: nothing is cached."""
        return keys, values

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """Return bool [T,T]: True for a key of the same sample, not later, and less than `window_size` tokens away."""
        self.asked = True
        away = mx.arange(length)[:, None] - mx.arange(length)[None]
        mask: mx.array = self._same & (away >= 0)
        return mask if window_size is None else mask & (away < window_size)


class GenericDecoder:
    """Any mlx_lm model with the interface of `MLXDecoder`. It ignores `recompute`: no gradient checkpointing."""

    def __init__(self, model: Any, prefix: str, config: PretrainedConfig, delta: MLXLoRADelta) -> None:
        self.model, self.shared, self.recompute, self.packs = model, ActiveParams(), 0, True
        text = config.to_dict()
        layers = {f"{prefix}.layers.{i}.{name}": (layer, name, module)
                  for i, layer in enumerate(model.model.layers) for name, module in layer.named_modules()
                  if isinstance(module, nn.Linear | nn.QuantizedLinear) and is_adaptable(name, text)}  # fmt: skip
        self.modules = {full: module for full, (_layer, _name, module) in layers.items()}
        for full, (layer, name, module) in layers.items():
            _replace(layer, name.split("."), MLXLoRALinear(full, module, self.shared, delta))
        self.head = generic_head(model, config)

    def hidden(self, params: Params, rows: DecoderInput) -> mx.array:
        """Return the last hidden state before each target [N,H]."""
        self.shared.params = params
        cache = None
        if len(rows.lengths) > 1:
            apart = SeparateSamplesMask(rows.lengths)
            cache = [apart] * len(self.model.model.layers)
        return self.model.model(rows.ids[None], cache)[0][rows.before_targets]

    def new_cache(self) -> list[Any]:
        """Return mlx_lm's empty cache for each layer."""
        found: list[Any] = make_prompt_cache(self.model)
        return found

    def next_logits(self, params: Params, ids: Sequence[int], cache: list[Any]) -> mx.array:
        """Return the logits [V] of the token after `ids`; `cache` holds the tokens before `ids`."""
        self.shared.params = params
        return self.model(mx.array(ids)[None], cache=cache)[0, -1].astype(mx.float32)


def generic_head(model: Any, config: PretrainedConfig) -> MLXHead:
    """Return the LM head with the factors that the config names. The self-check at load tests the result.

    Cohere multiplies the logits, Granite divides them, and Gemma caps them.
    """
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    return MLXHead(head_matrix(model), float(scale / divisor), getattr(config, "final_logit_softcapping", None))


def _replace(owner: Any, path: list[str], module: nn.Module) -> None:
    for part in path[:-1]:
        owner = owner[int(part)] if part.isdigit() else owner[part]
    owner[path[-1]] = module
