"""The model types that llama.cpp computes as transformers does: their tensors' names, and what their settings must be."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lorafit.errors import ModelError
from lorafit.exporters.gguf.rope import check_rope, original_length, rope_of
from lorafit.messages import _, listed
from lorafit.models.demo import TENSORS
from lorafit.models.text_config import layer_kinds, text_settings, window_of, with_defaults

ALWAYS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
}
HEAD = {"lm_head.weight": "output.weight"}
LLAMA = {theirs: ours for ours, theirs in TENSORS.items()}
QUERY_KEY_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
GEMMA = {
    **LLAMA,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
PHI3 = {
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
QUERY_KEY_VALUE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
LINEAR = (*QUERY_KEY_VALUE, "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Architecture:
    """A model type as llama.cpp computes it.

    `name` is llama.cpp's. `layer` maps module names of a decoder layer. `needed_biases` and `optional_biases` are modules
    with a bias. `reorders` is set where the rows of query and key are reordered for rotation of neighbouring values.
    `window_every` counts layers up to the next one with full attention, None where llama.cpp knows no window.
    `large` is the number of layers of the one size whose attention is scaled by hidden size per head.
    """

    name: str
    layer: Mapping[str, str]
    activation: str = "silu"
    needed_biases: tuple[str, ...] = ()
    optional_biases: tuple[str, ...] = ()
    reorders: bool = False
    norm_shift: float = 0.0
    window_every: int | None = None
    large: int = 0
    free_head_dim: bool = True
    scalings: frozenset[str] = field(default=frozenset({"default", "linear", "yarn"}))


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(
        "llama",
        LLAMA,
        optional_biases=LINEAR,
        reorders=True,
        scalings=frozenset({"default", "linear", "yarn", "llama3"}),
    ),
    "mistral": Architecture("llama", LLAMA, reorders=True),
    "qwen2": Architecture("qwen2", LLAMA, needed_biases=QUERY_KEY_VALUE, free_head_dim=False),
    "qwen3": Architecture("qwen3", {**LLAMA, **QUERY_KEY_NORMS}),
    "gemma2": Architecture(
        "gemma2", GEMMA, "gelu_pytorch_tanh", norm_shift=1.0, window_every=2, large=46, scalings=frozenset({"default"})
    ),
    "gemma3_text": Architecture(
        "gemma3",
        {**GEMMA, **QUERY_KEY_NORMS},
        "gelu_pytorch_tanh",
        norm_shift=1.0,
        window_every=6,
        large=62,
        scalings=frozenset({"default", "linear"}),
    ),
    "phi3": Architecture("phi3", PHI3, free_head_dim=False, scalings=frozenset({"default", "longrope"})),
}
SHOWN = {"gemma3_text": "gemma3"}


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the text decoder in `config`, with the defaults of its type."""
    return with_defaults(text_settings(config))


def find_architecture(settings: Mapping[str, Any], name: str) -> Architecture:
    """Return the architecture of the text decoder with these settings. `name` of the model is for error messages.

    Raise ModelError, with what can be exported, for another type, or for a setting that llama.cpp ignores.
    """
    kind = str(settings.get("model_type"))
    if kind not in ARCHITECTURES:
        known = listed(SHOWN.get(known, known) for known in ARCHITECTURES)
        raise _refusal(name, kind, _("GGUF files are written for these types: {types}.").format(types=known))
    architecture = ARCHITECTURES[kind]
    for setting, problem in _differences(architecture, settings):
        raise _refusal(name, f"{setting}: {problem}", _("Export with --to merged instead."))
    check_rope(settings, architecture.scalings, name)
    return architecture


def notes_of(settings: Mapping[str, Any]) -> list[str]:
    """Return where llama.cpp computes the model differently although it can be exported."""
    notes = []
    window, positions = window_of(settings), settings.get("max_position_embeddings") or 0
    if window and window < positions and ARCHITECTURES[str(settings["model_type"])].window_every is None:
        notes.append(
            _(
                "llama.cpp has no sliding window for this model: beyond {window} tokens, it computes other answers."
            ).format(window=window)
        )
    if (rope := rope_of(settings))["rope_type"] == "longrope":
        notes.append(
            _(
                "With a context above {length} tokens, llama.cpp uses the factors for long texts in short ones too, and "
                "computes other answers. Set the context to at most {length}."
            ).format(length=original_length(settings, rope))
        )
    return notes


def _refusal(name: str, found: str, fix: str) -> ModelError:
    return ModelError(_("This model cannot be exported as GGUF."), where=name, found=found, fix=fix)


def _differences(architecture: Architecture, settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return settings that llama.cpp would not follow, each with its value."""
    heads, hidden, layers = settings["num_attention_heads"], settings["hidden_size"], settings["num_hidden_layers"]
    head_dim = head_dim_of(settings)
    activation = settings.get("hidden_activation") or settings.get("hidden_act")
    wrong: dict[str, bool] = {
        "hidden_act": activation != architecture.activation,
        "head_dim": not architecture.free_head_dim and head_dim * heads != hidden,
    }
    if architecture.window_every:
        scale = hidden // heads if layers == architecture.large else head_dim
        every = architecture.window_every
        kinds = ["full" if (layer + 1) % every == 0 else "window" for layer in range(layers)]
        wrong |= {
            "query_pre_attn_scalar": settings.get("query_pre_attn_scalar") != scale,
            "layer_types": list(layer_kinds(settings, layers)) != kinds,
            "use_bidirectional_attention": bool(settings.get("use_bidirectional_attention")),
            "attn_logit_softcapping": (settings.get("attn_logit_softcapping") is None)
            != (architecture.name == "gemma3"),
            "final_logit_softcapping": architecture.name == "gemma2" and not settings.get("final_logit_softcapping"),
            "tie_word_embeddings": settings.get("tie_word_embeddings") is False,
        }
    return [(setting, settings.get(setting)) for setting, is_wrong in wrong.items() if is_wrong]


def head_dim_of(settings: Mapping[str, Any]) -> int:
    """Return the number of values of one attention head."""
    return int(settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"])
