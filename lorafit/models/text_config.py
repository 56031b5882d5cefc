"""The settings of the text decoder in a config.json: of a plain decoder, or of one in a wrapper with other towers.

A wrapper, such as a vision-language model, holds the decoder's settings in an entry of its own, for example text_config.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from lorafit.models.transformers_types import config_defaults

# Entries that hold the settings of a text decoder; thinker_config holds a wrapper of its own.
TEXT_ENTRIES = ("text_config", "llm_config", "language_config", "thinker_config", "lm_config", "decoder_config")
OTHER_ENTRIES = ("vision_config", "audio_config", "vision_tower_config", "speech_config", "talker_config")
STATE_SPACE = {"mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"}  # no layer has attention
CHOSEN_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "experts_per_token", "moe_topk",
                  "moe_k", "moe_top_k", "num_selected_experts", "top_k")  # fmt: skip
# Layers between those with full attention, where older files of a type do not list the layers.
FULL_ATTENTION_EVERY = {"gemma2": 2, "gpt_oss": 2, "cohere2": 4, "gemma3_text": 6, "llama4_text": 4}

LayerKind = Literal["full", "window", "state", "none"]  # how a layer mixes positions; "none": a layer of an MLP alone
# Words in `layer_types` and in similar lists -> the kind of the layer, the first match counts.
KINDS: tuple[tuple[str, LayerKind], ...] = (
    (r"sliding|chunked|local", "window"),
    (r"linear|mamba|conv|recurrent|^m$", "state"),
    (r"mlp|moe|^-$|^e$", "none"),
    (r".", "full"),
)
LISTS = ("layer_types", "layers_block_type", "block_types")


def text_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the text decoder in the content `config` of a config.json.

    An entry for the text decoder counts before an entry of the wrapper.
    """
    outer, inner = dict(config), dict(config)
    while nested := next((inner[key] for key in TEXT_ENTRIES if isinstance(inner.get(key), dict)), None):
        outer, inner = {**outer, **inner}, nested
    return {**outer, **inner}


def with_defaults(text: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings `text` and the defaults of the config class: files leave out what equals a default."""
    return {**config_defaults(str(text.get("model_type", ""))), **text}


def is_wrapper(config: Mapping[str, Any]) -> bool:
    """Return whether the model in `config` has a tower for images, audio or other inputs beside its text decoder."""
    return any(isinstance(config.get(key), dict) for key in (*TEXT_ENTRIES, *OTHER_ENTRIES))


def chosen_experts(text: Mapping[str, Any]) -> int | None:
    """Return the number of routed experts that compute one token, or None if the settings do not name it."""
    nested = text.get("ffn_config")  # DBRX
    places = [text, nested] if isinstance(nested, dict) else [text]
    for place in places:
        for key in CHOSEN_EXPERTS:
            value = place.get(key)
            value = max(value) if isinstance(value, list) and value else value
            if isinstance(value, int) and value > 0:
                return value
    return None


def layer_kinds(text: Mapping[str, Any], layers: int) -> tuple[LayerKind, ...]:
    """Return the kind of each of the `layers` layers.

    A layer with attention and a state space, as in Falcon H1, counts as "full".
    """
    state: LayerKind = "state"
    listed = _listed_kinds(text)
    if listed is not None and len(listed) >= layers:
        return tuple(listed[:layers])
    if str(text.get("model_type")) in STATE_SPACE:
        return (state,) * layers
    other = state
    if (rule := _state_rule(text)) is None:
        rule, other = _window_rule(text), "window"
    same: LayerKind = "full" if window_of(text) is None else "window"
    kinds: list[LayerKind] = [same if rule is None else "full" if rule(layer) else other for layer in range(layers)]
    return tuple(kinds)


def window_of(text: Mapping[str, Any]) -> int | None:
    """Return the sliding window or attention chunk in tokens, or None.

    Qwen's configs name a window even if use_sliding_window is false.
    """
    if text.get("use_sliding_window") is False:
        return None
    window = text.get("sliding_window") or text.get("attention_chunk_size")
    return window if isinstance(window, int) and window > 0 else None


def _listed_kinds(text: Mapping[str, Any]) -> list[LayerKind] | None:
    """Return the kinds from a list with a word for each layer, or from a pattern with a letter for each."""
    words: Sequence[Any] | None = next((text[key] for key in LISTS if isinstance(text.get(key), list)), None)
    if words is None and isinstance(text.get("hybrid_override_pattern"), str):
        words = text["hybrid_override_pattern"]
    if words is None and isinstance(text.get("attn_type_list"), list):  # MiniMax: 0 is linear attention
        words = ["full" if word else "linear" for word in text["attn_type_list"]]
    if words is None:
        return None
    windowed = window_of(text) is not None
    kinds = [next(kind for mark, kind in KINDS if re.search(mark, str(word).lower())) for word in words]
    return [kind if windowed or kind != "window" else "full" for kind in kinds]


def _state_rule(text: Mapping[str, Any]) -> Callable[[int], bool] | None:
    """Return a function that tells whether layer N has attention; None if no layer is a state space."""
    indices = next(
        (text[key] for key in ("attn_layer_indices", "full_attn_idxs") if isinstance(text.get(key), list)), None
    )
    linear = text.get("linear_attn_config")
    if isinstance(linear, dict) and isinstance(linear.get("full_attn_layers"), list):
        indices = [number - 1 for number in linear["full_attn_layers"]]  # Kimi counts from 1
    if isinstance(indices, list):
        return lambda layer: layer in indices
    if isinstance(period := text.get("attn_layer_period"), int) and period > 0:
        return lambda layer: layer % period == (text.get("attn_layer_offset") or 0)
    every = text.get("full_attention_interval") or text.get("layer_group_size")
    if isinstance(every, int) and every > 1:
        return lambda layer: (layer + 1) % every == 0
    return None


def _window_rule(text: Mapping[str, Any]) -> Callable[[int], bool] | None:
    """Return a function that tells whether layer N has full attention; None if all layers are alike."""
    if window_of(text) is None:
        return None
    if isinstance(lists := text.get("no_rope_layers"), list) and lists and text.get("attention_chunk_size"):
        return lambda layer: layer < len(lists) and not lists[layer]
    every = text.get("sliding_window_pattern") or text.get("no_rope_layer_interval")
    every = every or FULL_ATTENTION_EVERY.get(str(text.get("model_type")))
    if isinstance(every, str) and every:
        return lambda layer: every[layer % len(every)] == "G"
    return (lambda layer: (layer + 1) % every == 0) if isinstance(every, int) and every > 1 else None
