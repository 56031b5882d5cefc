"""Self-check at load: packed samples must give the logits of single samples, for three tiny samples."""

import math
from dataclasses import is_dataclass
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from lorafit.data.micro_batch import Sample, pack
from lorafit.engines.base import not_finite_error
from lorafit.engines.boundaries import boundaries_of, small_boundaries
from lorafit.engines.mlx.decoder import DecoderInput
from lorafit.engines.mlx.load import LoadedBase
from lorafit.engines.mlx.lora import Params
from lorafit.engines.mlx.loss import MLXHead

# Largest relative difference by norm that rounding explains. A wrong mask or position causes a much larger difference.
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
LENGTHS = (4, 7, 3)


class HiddenStates(Protocol):
    """A decoder that computes hidden states, with its LM head."""

    head: MLXHead

    def hidden(self, params: Params, rows: DecoderInput) -> mx.array:
        """Return the last hidden state before each target [N,H]."""
        ...


def packing_error(body: HiddenStates, base: LoadedBase, params: Params, through_boundaries: bool = False) -> float:
    """Return the difference between packed logits and mlx_lm's own logits without adapters, one sample at a time.

    With `through_boundaries`, mlx_lm's windows and chunks are so small that the samples are longer. The difference is
    infinite if the model needs more of the cache than packing provides, or if a result is not a number. `params`
    must not change the base's result.
    """
    rng, vocab = np.random.default_rng(0), base.config.vocab_size
    samples = [Sample(rng.integers(0, vocab, n).astype(np.int32), np.arange(n) > 0) for n in LENGTHS]
    packed = pack(samples, range(len(samples)), range(len(samples)))
    try:
        with small_boundaries(_settings(base) if through_boundaries else []):
            found = body.head(body.hidden(params, DecoderInput.of(packed)))
            wanted = mx.concatenate([_own_logits(base, sample.input_ids)[:-1] for sample in samples])
            mx.eval(found, wanted)
    except (AttributeError, IndexError, TypeError, ValueError):
        return math.inf
    return difference(found, wanted)


def _settings(base: LoadedBase) -> list[object]:
    """Return the modules of mlx_lm's model and their settings."""
    modules = base.model.modules()
    return [*modules, *(value for module in modules for value in vars(module).values() if is_dataclass(value))]


def ignored_boundary(base: LoadedBase) -> int | None:
    """Return the shortest window or chunk of the config, in tokens, that mlx_lm ignores; None if it ignores none."""
    ids = np.random.default_rng(0).integers(0, base.config.vocab_size, max(LENGTHS)).astype(np.int32)
    usual, ignored = _own_logits(base, ids), []
    for kind, length in boundaries_of(base.config).items():
        with small_boundaries(_settings(base), [kind]):
            if difference(_own_logits(base, ids), usual) == 0:
                ignored.append(length)
    return min(ignored, default=None)


def single_error(body: HiddenStates, base: LoadedBase, params: Params) -> float:
    """Return the difference that `packing_error` returns, for one sample without packing."""
    ids = np.random.default_rng(0).integers(0, base.config.vocab_size, max(LENGTHS)).astype(np.int32)
    rows = DecoderInput.of(pack([Sample(ids, np.arange(len(ids)) > 0)], [0], [0]))
    return difference(body.head(body.hidden(params, rows)), _own_logits(base, ids)[:-1])


def check_finite(base: LoadedBase, model: str, precision: str) -> None:
    """Raise ModelError if mlx_lm's own logits are not finite numbers."""
    ids = np.random.default_rng(0).integers(0, base.config.vocab_size, max(LENGTHS)).astype(np.int32)
    if bool(mx.isfinite(_own_logits(base, ids)).all()):
        return
    weights = [(name, w) for name, w in tree_flatten(base.model.parameters()) if mx.issubdtype(w.dtype, mx.floating)]
    raise not_finite_error(model, [name for name, w in weights if not bool(mx.isfinite(w).all())], precision)


def _own_logits(base: LoadedBase, ids: Any) -> mx.array:
    """Return mlx_lm's own logits [T,V], in fp32.

    mlx_lm's Gemma 3 rounds the embedding scale to bfloat16 in every precision; this function undoes the rounding.
    """
    model, ids_1T = base.model, mx.array(ids)[None]
    if base.config.model_type == "gemma3_text":
        scale = base.config.hidden_size**0.5
        embedded = model.model.embed_tokens(ids_1T)
        rounded = mx.array(scale, mx.bfloat16).astype(embedded.dtype)
        return model(ids_1T, input_embeddings=embedded * (scale / rounded))[0].astype(mx.float32)
    return model(ids_1T)[0].astype(mx.float32)


def difference(found: mx.array, wanted: mx.array) -> float:
    """Return the norm of the difference, relative to the norm of `wanted`; infinite if it is not a number."""
    off = float(mx.linalg.norm(found - wanted) / mx.linalg.norm(wanted))
    return off if math.isfinite(off) else math.inf
