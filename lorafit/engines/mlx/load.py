"""Loading of base models with mlx_lm, from a config.json that transformers interprets.

mlx_lm reads some settings only where older files have them. Without them it silently uses its own defaults, and a
model of transformers 5 (rope_parameters) then computes nonsense. So this module puts the settings where mlx_lm looks.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map
from mlx_lm.utils import load_model
from transformers import AutoConfig, PretrainedConfig

from lorafit.engines.base import Setup
from lorafit.engines.mlx.quantised import (
    BITS,
    quantization_settings,
    quantize_layers,
    quantized_folder,
    write_quantized,
)
from lorafit.engines.mlx.rope import rope_parameters
from lorafit.errors import ModelError
from lorafit.messages import _, noted, translate

DECODERS = {"llama4": "language_model.model"}  # decoders of multimodal classes that are not model.language_model
# Types that mlx_lm (0.32.2) computes otherwise than transformers, and how.
DIFFERENT = {
    "ernie4_5_moe": noted("the router's e_score_correction_bias is left out"),
    "glm": noted("the rotary embedding covers the whole head"),
    "jamba": noted("the router's weights of the chosen experts are normalized"),
}
DTYPES = {"fp32": mx.float32, "bf16": mx.bfloat16, "fp16": mx.float16}


@dataclass(frozen=True)
class LoadedBase:
    """A loaded model: mlx_lm's text model, its decoder's name in transformers, its settings as transformers reads them.

    `stored_bits` is set if the folder's weights were already quantized. `path` is where mlx_lm's own model has the text
    model: "" or "language_model.".
    """

    model: Any
    prefix: str
    config: PretrainedConfig
    stored_bits: int | None = None
    path: str = ""


def load_base(setup: Setup) -> LoadedBase:
    """Load the base model in the requested precision and quantization. Raise ModelError."""
    try:
        facts = json.loads((setup.folder / "config.json").read_text("utf-8"))
        config = AutoConfig.from_pretrained(
            setup.folder, local_files_only=True, trust_remote_code=setup.trust_remote_code
        )
        refuse_different(config)
        bits = _stored_bits(setup, facts)
        model = _load(setup, facts, config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SystemExit) as error:
        fix = _(
            "Check that the folder is complete and that the installed mlx-lm supports this model "
            "(upgrade: {command}), or use --engine torch."
        )
        raise ModelError(
            _("MLX cannot load the base model."),
            where=setup.folder,
            found=error,
            fix=fix.format(command="pip install -U mlx-lm"),
        ) from error
    model.eval()
    model.freeze()
    _cast(model, DTYPES[setup.precision])
    inner = "language_model" in model
    if not hasattr(model.language_model if inner else model, "model"):
        what = _("lorafit cannot train this model type with MLX.")
        raise ModelError(what, where=setup.folder, found=config.model_type, fix=_("Try --engine torch."))
    text, path = (model.language_model, "language_model.") if inner else (model, "")
    return LoadedBase(text, _prefix(config), config.get_text_config(), bits, path)


def refuse_different(config: PretrainedConfig) -> None:
    """Raise ModelError for a type that mlx_lm computes otherwise than transformers."""
    kind = config.get_text_config().model_type
    if kind in DIFFERENT:
        what = _("mlx_lm computes this model type otherwise than transformers.")
        raise ModelError(what, found=f"{kind}: {translate(DIFFERENT[kind])}", fix=_("Try --engine torch."))


def _prefix(config: PretrainedConfig) -> str:
    """Return the name of the text decoder in transformers' model class for `config`."""
    text = config.get_text_config()
    return "model" if text is config else DECODERS.get(config.model_type, "model.language_model")


def _stored_bits(setup: Setup, facts: dict[str, Any]) -> int | None:
    """Return the bits of a folder that mlx_lm quantized, else None. Raise ModelError if `setup` requests other bits."""
    stored = facts.get("quantization")
    if not stored:
        return None
    bits = int(stored["bits"])
    if BITS.get(setup.quantization, bits) != bits:
        raise ModelError(
            _("The base model is already quantized to a different number of bits."),
            where=setup.folder,
            found=_("{bits}-bit, requested: {asked}").format(bits=bits, asked=setup.quantization),
            fix=_("Remove --quantization, or use the unquantized model."),
        )
    return bits


def _load(setup: Setup, facts: dict[str, Any], config: PretrainedConfig) -> Any:
    """Return mlx_lm's model with its weights, quantized if `setup` requests it and the files are not yet quantized."""
    extra = missing_settings(facts, config)
    bits = None if facts.get("quantization") else BITS.get(setup.quantization)
    if bits is None:
        return load_model(setup.folder, lazy=True, model_config=extra)[0]
    place = _quantized(setup.folder, facts, extra, bits)
    return load_model(place, lazy=True, model_config={**extra, **quantization_settings(bits)})[0]


def quantized_base(setup: Setup) -> Path:
    """Return the folder of the base model quantized as in a training with `setup`; it is made if it does not exist."""
    facts = json.loads((setup.folder / "config.json").read_text("utf-8"))
    config = AutoConfig.from_pretrained(setup.folder, local_files_only=True, trust_remote_code=setup.trust_remote_code)
    return _quantized(setup.folder, facts, missing_settings(facts, config), BITS[setup.quantization])


def _quantized(folder: Path, facts: dict[str, Any], extra: dict[str, Any], bits: int) -> Path:
    place = quantized_folder(folder, bits)
    if not place.is_dir():
        model, _facts = load_model(folder, lazy=True, model_config=extra)
        quantize_layers(model, bits)
        write_quantized(model, facts, bits, place)
    return place


def missing_settings(facts: dict[str, Any], config: PretrainedConfig) -> dict[str, Any]:
    """Return settings for mlx_lm in addition to config.json (`facts`).

    These are the defaults of transformers and, at the top level of the text settings, the rotary settings.
    """
    text = config.get_text_config()
    own = facts.get("text_config", facts)
    settings = text.to_dict()
    older = {alias: settings[name] for alias, name in text.attribute_map.items() if name in settings}
    known = {key: value for key, value in {**settings, **older}.items() if value is not None and key not in facts}
    known.pop("quantization_config", None)
    extra = {**known, **_rotary(text)} if own is facts else _rotary(text)
    return extra if own is facts else {"text_config": {**known, **own, **extra}}


def _rotary(text: PretrainedConfig) -> dict[str, Any]:
    if not getattr(text, "rope_parameters", None):
        return {}
    full = rope_parameters(text, "full_attention")
    settings: dict[str, Any] = {"rope_theta": full["rope_theta"], "rope_scaling": None}
    if full.get("rope_type", "default") != "default":
        settings["rope_scaling"] = {**full, "type": full["rope_type"]}
    if full.get("rope_type") == "longrope":  # mlx_lm always uses the long factors, transformers only in long texts
        settings["rope_scaling"]["long_factor"] = full["short_factor"]
    if "partial_rotary_factor" in full:
        settings["partial_rotary_factor"] = full["partial_rotary_factor"]
    if "sliding_attention" in text.rope_parameters:
        settings["rope_local_base_freq"] = rope_parameters(text, "sliding_attention")["rope_theta"]
    kinds = getattr(text, "layer_types", None) or []
    if "full_attention" in kinds and "sliding_attention" in kinds:
        settings["sliding_window_pattern"] = kinds.index("full_attention") + 1
    return settings


def _cast(model: nn.Module, dtype: mx.Dtype) -> None:
    """Cast the floating-point weights to `dtype`; packed weights stay unchanged."""
    model.update(tree_map(lambda a: a.astype(dtype) if mx.issubdtype(a.dtype, mx.floating) else a, model.parameters()))
