"""What of a model whose layers we do not compute ourselves? mlx_lm's own model, with adapters put into its linear layers.

Packed samples are kept apart by a mask [T,T], which mlx_lm asks a cache for; where a model does not ask, samples go
one by one. Letters: T tokens, N targets, H hidden, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache
from transformers import PretrainedConfig

from lorafit.engines.mlx.decoder import DecoderInput, head_matrix
from lorafit.engines.mlx.lora import MLXLoRADelta, Params, Stack
from lorafit.engines.mlx.loss import MLXHead
from lorafit.engines.mlx.quantised import ROUTER


class SharedLinear:
    """The adapter weights that a pass is computed with: a function's arguments, so that MLX can differentiate by them."""

    def __init__(self) -> None:
        self.params: Params = {}


class MLXLoRALinear(nn.Module):
    """A frozen linear layer with its adapter, in the place of mlx_lm's own."""

    def __init__(self, name: str, module: nn.Module, shared: SharedLinear, delta: MLXLoRADelta) -> None:
        super().__init__()
        self._stack, self._shared, self._delta = Stack({name: module}, delta), shared, delta

    def __call__(self, x: mx.array) -> mx.array:
        out = self._stack(self._delta.keys_T, self._shared.params, x.reshape(-1, x.shape[-1]))[0]
        return out.reshape(*x.shape[:-1], -1)


class SeparateSamplesMask:
    """Looks like a layer's empty cache, and answers with the mask that keeps packed samples apart."""

    offset = 0

    def __init__(self, lengths: list[int]) -> None:
        owner = mx.concatenate([mx.full((length,), i, mx.int32) for i, length in enumerate(lengths)])
        self._same, self.asked = owner[:, None] == owner[None], False

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """Bool [T,T]: the same sample, not later, less than `window_size` away."""
        self.asked = True
        away = mx.arange(length)[:, None] - mx.arange(length)[None]
        mask: mx.array = self._same & (away >= 0)
        return mask if window_size is None else mask & (away < window_size)


class GenericDecoder:
    """The same face as Decoder over any model of mlx_lm. No layer is computed twice to save memory."""

    def __init__(self, model: Any, prefix: str, config: PretrainedConfig, delta: MLXLoRADelta) -> None:
        self.model, self.shared, self.recompute, self.packs = model, SharedLinear(), 0, True
        layers = {f"{prefix}.layers.{i}.{name}": (layer, name, module)
                  for i, layer in enumerate(model.layers) for name, module in layer.named_modules()
                  if isinstance(module, nn.Linear | nn.QuantizedLinear) and not ROUTER.search(f".{name}")}  # fmt: skip
        self.modules = {full: module for full, (_layer, _name, module) in layers.items()}
        for full, (layer, name, module) in layers.items():
            _replace(layer, name.split("."), MLXLoRALinear(full, module, self.shared, delta))
        self.head = generic_head(model, config)

    def hidden(self, params: Params, rows: DecoderInput) -> mx.array:
        """Last hidden states before each target [N,H]."""
        self.shared.params = params
        cache = None
        if len(rows.lengths) > 1:
            apart = SeparateSamplesMask(rows.lengths)
            cache = [apart] * len(self.model.layers)
        return self.model.model(rows.ids[None], cache)[0][rows.before]

    def new_cache(self) -> list[Any]:
        found: list[Any] = make_prompt_cache(self.model)
        return found

    def next_logits(self, params: Params, ids: Sequence[int], cache: list[Any]) -> mx.array:
        """Logits [V] of what follows `ids`, which follow what is in `cache`."""
        self.shared.params = params
        return self.model(mx.array(ids)[None], cache=cache)[0, -1].astype(mx.float32)


def generic_head(model: Any, config: PretrainedConfig) -> MLXHead:
    """The head as far as it is known: Cohere multiplies logits, Granite divides them, Gemma caps them. Checked at load."""
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    return MLXHead(head_matrix(model), float(scale / divisor), getattr(config, "final_logit_softcapping", None))


def _replace(owner: Any, path: list[str], module: nn.Module) -> None:
    for part in path[:-1]:
        owner = owner[int(part)] if part.isdigit() else owner[part]
    owner[path[-1]] = module
