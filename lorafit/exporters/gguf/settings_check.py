"""The settings of a GGUF file as llama.cpp reads them: those of config.json, also where no short text shows them.

A window of 4,096 tokens, or positions that are scaled for long texts, change nothing in the texts that are measured.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from lorafit.errors import ExportError
from lorafit.exporters.gguf.architectures import find_architecture, head_dim_of, settings_of
from lorafit.exporters.gguf.rope import original_length, rope_of, rotated_values
from lorafit.exporters.gguf.runtime import LlamaCpp
from lorafit.messages import _, clauses

SAME = 1e-5  # relative difference of float32 numbers


def require_settings_in(model: LlamaCpp, config: Mapping[str, Any], elements: int, name: str) -> None:
    """Raise ExportError if llama.cpp reads another setting than that of `config`, the config.json of the model `name`.

    `elements` are the numbers in all tensors of the file but those of scaled positions.
    """
    settings = settings_of(config)
    own = find_architecture(settings, name).name
    found = {key: model.setting(f"{own}.{key}") for key, _value in _wanted(settings)}
    wrong = [f"{key}: {found[key]} != {value}" for key, value in _wanted(settings) if not _same(found[key], value)]
    if (there := model.elements) != (wanted := elements + _factors(settings)):
        wrong.append(f"{there} != {wanted}")
    if wrong:
        raise ExportError(
            _("llama.cpp reads other settings from the file than those of the model."),
            found=clauses(wrong[:3]),
            fix=_("Export with --to merged instead, and please report it."),
        )


def _wanted(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield llama.cpp's names of settings, each with its value."""
    heads, rope, head_dim = settings["num_attention_heads"], rope_of(settings), head_dim_of(settings)
    yield from {
        "context_length": settings["max_position_embeddings"], "block_count": settings["num_hidden_layers"],
        "embedding_length": settings["hidden_size"], "feed_forward_length": settings["intermediate_size"],
        "attention.head_count": heads, "attention.head_count_kv": settings["num_key_value_heads"] or heads,
        "attention.key_length": head_dim, "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": settings["rms_norm_eps"], "rope.freq_base": rope["rope_theta"],
        "rope.dimension_count": rotated_values(settings, head_dim),
    }.items()  # fmt: skip
    if str(settings["model_type"]).startswith("gemma"):
        yield "attention.sliding_window", settings["sliding_window"]
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            if settings.get(key):
                yield key, settings[key]
    if rope["rope_type"] in ("linear", "yarn"):
        yield "rope.scaling.type", rope["rope_type"]
        yield "rope.scaling.factor", rope["factor"]
    if rope["rope_type"] == "yarn":
        yield "rope.scaling.original_context_length", original_length(settings, rope)


def _factors(settings: Mapping[str, Any]) -> int:
    """Return how many numbers scale the frequencies of positions."""
    count = rotated_values(settings, head_dim_of(settings)) // 2
    return count * {"llama3": 1, "longrope": 2}.get(rope_of(settings)["rope_type"], 0)


def _same(found: str | None, value: Any) -> bool:
    if found is None or isinstance(value, str):
        return bool(found == value)
    return math.isclose(float(found), float(value), rel_tol=SAME)
