"""Rotary position embeddings with the frequencies that transformers itself computes for a model.

Each sample starts at position 0, so that rounding does not depend on the samples before it in a micro-batch.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


@dataclass(frozen=True)
class Rope:
    """A rotary embedding of the first `dims` channels with `periods`; `factor` scales these channels.

    Beyond `longest` tokens, `long_periods` replace `periods` (longrope only).
    """

    dims: int
    periods: mx.array
    factor: float = 1.0
    long_periods: mx.array | None = None
    longest: int = 0

    def __call__(self, x: mx.array, offset: int = 0) -> mx.array:
        """Rotate x [1,heads,S,D], whose first token has the position `offset`."""
        if self.factor != 1.0:
            x = mx.concatenate([x[..., : self.dims] * self.factor, x[..., self.dims :]], axis=-1)
        long = self.long_periods is not None and offset + x.shape[2] > self.longest
        return mx.fast.rope(
            x, self.dims, traditional=False, base=None, scale=1.0, offset=offset,
            freqs=self.long_periods if long else self.periods,
        )  # fmt: skip


def rope_parameters(config: PretrainedConfig, layer_type: str | None) -> dict[str, Any]:
    """Return the model's rotary settings: those of `layer_type` if the settings differ by layer type."""
    facts: dict[str, Any] = config.rope_parameters or {}
    return dict(facts.get(layer_type or "", facts))


def make_rope(config: PretrainedConfig, layer_type: str | None, head_dim: int) -> Rope | None:
    """Return the rotary embedding of a layer type; None for type "dynamic", which changes with the text length.

    "dynamic" is not supported.
    """
    facts = rope_parameters(config, layer_type)
    kind, layer_type = facts.get("rope_type", "default"), layer_type if layer_type in config.rope_parameters else None
    if kind == "dynamic":
        return None
    if kind == "default":
        dims = int(head_dim * facts.get("partial_rotary_factor", 1.0))
        return Rope(dims, float(facts["rope_theta"]) ** (mx.arange(0, dims, 2) / dims))
    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, layer_type=layer_type)
    rope = Rope(2 * len(frequencies), 1 / mx.array(frequencies.numpy()), float(factor))
    if kind != "longrope":
        return rope
    longest = int(facts["original_max_position_embeddings"])
    frequencies, _factor = ROPE_INIT_FUNCTIONS[kind](config, seq_len=longest + 1, layer_type=layer_type)
    return Rope(rope.dims, rope.periods, rope.factor, 1 / mx.array(frequencies.numpy()), longest)
