"""Rotary positions in GGUF's terms: metadata, and tensors of factors for Llama 3 and for long contexts of Phi-3."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from gguf import GGUFWriter, RopeScalingType

from lorafit.errors import ModelError
from lorafit.exporters.gguf.source import Floats
from lorafit.messages import _

# Settings of YaRN that llama.cpp ignores, and the value that it computes with; None: it computes its own.
SWITCHES = {
    "attention_factor": None,
    "mscale": None,
    "mscale_all_dim": None,
    "truncate": True,
    "beta_fast": 32,
    "beta_slow": 1,
}


def rope_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary settings of the layers with full attention, from any place where files keep them."""
    rope = dict(settings.get("rope_parameters") or settings.get("rope_scaling") or {})
    rope = dict(rope.get("full_attention") or rope)
    for key in ("rope_theta", "partial_rotary_factor"):
        if rope.get(key) is None and settings.get(key) is not None:
            rope[key] = settings[key]
    rope["rope_type"] = {"su": "longrope"}.get(kind := rope.get("rope_type") or rope.get("type") or "default", kind)
    rope.setdefault("rope_theta", 10000.0)
    return rope


def check_rope(settings: Mapping[str, Any], scalings: Collection[str], name: str) -> None:
    """Raise ModelError if the positions of the model called `name` are scaled in a way outside `scalings`."""
    rope = rope_of(settings)
    partial = rope.get("partial_rotary_factor") or 1.0
    found = None
    if rope["rope_type"] not in scalings:
        found = f"rope_type: {rope['rope_type']}"
    elif partial != 1.0 and settings["model_type"] != "phi3":
        found = f"partial_rotary_factor: {partial}"
    elif rope["rope_type"] == "yarn":
        unlike = (key for key, value in SWITCHES.items() if rope.get(key) not in (None, value))
        found = next((f"{key}: {rope[key]}" for key in unlike), None)
    if found:
        raise ModelError(
            _("This model cannot be exported as GGUF."),
            where=name,
            found=found,
            fix=_("Export with --to merged instead."),
        )


def rotated_values(settings: Mapping[str, Any], head_dim: int) -> int:
    """Return the number of values of a head that positions rotate."""
    return int(head_dim * (rope_of(settings).get("partial_rotary_factor") or 1.0))


def add_rope(writer: GGUFWriter, settings: Mapping[str, Any], head_dim: int) -> None:
    """Add the metadata of rotary positions to `writer`."""
    rope = rope_of(settings)
    writer.add_rope_dimension_count(rotated_values(settings, head_dim))
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    local = (settings.get("rope_parameters") or {}).get("sliding_attention") or {}
    if base := local.get("rope_theta") or settings.get("rope_local_base_freq"):
        writer.add_rope_freq_base_swa(float(base))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif rope["rope_type"] == "yarn":
        _add_yarn(writer, rope, settings)
    elif rope["rope_type"] == "longrope":
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_attn_factors(_attention_factor(settings, rope))
    if settings["model_type"] == "phi3":
        writer.add_rope_scaling_orig_ctx_len(original_length(settings, rope))


def rope_factors(settings: Mapping[str, Any], head_dim: int) -> dict[str, Floats]:
    """Return tensors of factors that divide the frequencies, by their names in the file."""
    rope = rope_of(settings)
    if rope["rope_type"] == "llama3":
        return {"rope_freqs.weight": _llama3_factors(rope, head_dim)}
    if rope["rope_type"] == "longrope":
        return {
            f"rope_factors_{length}.weight": np.array(rope[f"{length}_factor"], np.float32)
            for length in ("long", "short")
        }
    return {}


def _llama3_factors(rope: Mapping[str, Any], head_dim: int) -> Floats:
    """Return 1 for short wavelengths, the factor for long ones, and a smooth passage between, as transformers does."""
    steps = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    lengths = 2 * math.pi * np.float32(rope["rope_theta"]) ** steps.astype(np.float32)
    turns = rope["original_max_position_embeddings"] / lengths
    low, high, factor = (float(rope[key]) for key in ("low_freq_factor", "high_freq_factor", "factor"))
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(1 / ((1 - smooth) / factor + smooth), np.float32)


def _add_yarn(writer: GGUFWriter, rope: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(float(rope["factor"]))
    writer.add_rope_scaling_orig_ctx_len(original_length(settings, rope))


def original_length(settings: Mapping[str, Any], rope: Mapping[str, Any]) -> int:
    """Return the number of positions that the model was made for before they were scaled."""
    original = rope.get("original_max_position_embeddings") or settings.get("original_max_position_embeddings")
    return int(original or settings["max_position_embeddings"])


def _attention_factor(settings: Mapping[str, Any], rope: Mapping[str, Any]) -> float:
    """Return the factor of attention in a long context, as transformers computes it."""
    if (told := rope.get("attention_factor")) is not None:
        return float(told)
    original = original_length(settings, rope)
    scale = settings["max_position_embeddings"] / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
