"""Does this model compute packed what it computes sample by sample? Tried at load on three tiny samples, before anything is spent."""

import math
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from lorafit.data.micro_batch import Sample, pack
from lorafit.engines.mlx.decoder import DecoderInput
from lorafit.engines.mlx.load import LoadedBase
from lorafit.engines.mlx.lora import Params
from lorafit.engines.mlx.loss import MLXHead

# Largest difference by norm that rounding explains. A wrong mask or position is off by much more.
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
LENGTHS = (4, 7, 3)


class HiddenStates(Protocol):
    """What makes hidden states of tokens."""

    head: MLXHead

    def hidden(self, params: Params, rows: DecoderInput) -> mx.array: ...


def packing_error(body: HiddenStates, base: LoadedBase, params: Params) -> float:
    """How far packed logits are from those of mlx_lm's own model without adapters, one sample at a time; by norm.

    Infinite where the model asks more of a cache than packing has, or gives no numbers. `params` must not change what
    the base computes.
    """
    rng, vocab = np.random.default_rng(0), base.config.vocab_size
    samples = [Sample(rng.integers(0, vocab, n).astype(np.int32), np.arange(n) > 0) for n in LENGTHS]
    packed = pack(samples, range(len(samples)), range(len(samples)))
    try:
        found = body.head(body.hidden(params, DecoderInput.of(packed)))
        wanted = mx.concatenate([_own_logits(base, sample.input_ids)[:-1] for sample in samples])
    except (AttributeError, IndexError, TypeError, ValueError):
        return math.inf
    return difference(found, wanted)


def single_error(body: HiddenStates, base: LoadedBase, params: Params) -> float:
    """The same for one sample alone."""
    ids = np.random.default_rng(0).integers(0, base.config.vocab_size, max(LENGTHS)).astype(np.int32)
    rows = DecoderInput.of(pack([Sample(ids, np.arange(len(ids)) > 0)], [0], [0]))
    return difference(body.head(body.hidden(params, rows)), _own_logits(base, ids)[:-1])


def _own_logits(base: LoadedBase, ids: Any) -> mx.array:
    """mlx_lm's own logits [T,V]. Its Gemma 3 rounds the scale of embeddings to bfloat16 whatever the numbers: undone."""
    model, ids_1T = base.model, mx.array(ids)[None]
    if base.config.model_type == "gemma3_text":
        scale = base.config.hidden_size**0.5
        embedded = model.model.embed_tokens(ids_1T)
        rounded = mx.array(scale, mx.bfloat16).astype(embedded.dtype)
        return model(ids_1T, input_embeddings=embedded * (scale / rounded))[0].astype(mx.float32)
    return model(ids_1T)[0].astype(mx.float32)


def difference(found: mx.array, wanted: mx.array) -> float:
    """Distance by norm, relative to `wanted`; infinite where it is not a number."""
    off = float(mx.linalg.norm(found - wanted) / mx.linalg.norm(wanted))
    return off if math.isfinite(off) else math.inf
