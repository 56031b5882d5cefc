"""Whether transformers can train a model, from its config.json alone: before a weight is fetched or a library imported.

The engine has the last word. Its reasons are those of the loaded model.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lorafit.errors import ModelError
from lorafit.messages import _
from lorafit.models.text_config import text_settings, with_defaults
from lorafit.models.text_tensors import CONV1D
from lorafit.models.transformers_types import classes_for, config_classes

# Tasks of transformers whose models contain a text decoder that predicts the next token.
TASKS = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")
COMMON = {"llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "phi3", "gemma2", "gemma3_text"}  # not looked up
UPGRADE = "pip install -U transformers"


def check_trainable(config: Mapping[str, Any], where: Path | str, trust_remote_code: bool = False) -> None:
    """Raise ModelError, with one line to paste, if the model with this config.json cannot be trained.

    A type that lorafit cannot look up, because the list of transformers is not readable, passes.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind in COMMON or not (known := config_classes()):
        return
    own_code = isinstance(config.get("auto_map"), dict)
    if kind not in known or not _has_decoder(kind):
        if own_code and trust_remote_code:
            return
        if own_code:
            raise _needs_own_code(config, where, kind)
        if kind not in known:
            raise _unknown(where, kind)
        raise _not_a_decoder(where, kind)
    text = with_defaults(text_settings(config))
    masked = kind in classes_for("MASKED_LM") and not text.get("is_decoder")
    if masked or text.get("is_encoder_decoder") or config.get("is_encoder_decoder"):
        raise _not_a_decoder(where, kind)
    if kind in CONV1D:
        raise ModelError(
            _("This model has no linear layers that LoRA can be added to."),
            where=where,
            found=f"model_type: {kind}",
            fix=_("Choose a newer model: `--model_name demo` is the smallest."),
        )
    _require_timm(config, where, kind)


def _has_decoder(kind: str) -> bool:
    return any(kind in classes_for(task) for task in TASKS)


def _require_timm(config: Mapping[str, Any], where: Path | str, kind: str) -> None:
    """Raise ModelError if transformers builds this type only with its picture tower, and that needs timm."""
    picture = config.get("vision_config")
    inside = isinstance(picture, dict) and picture.get("model_type") == "timm_wrapper"
    if inside and kind not in classes_for("CAUSAL_LM") and find_spec("timm") is None:
        raise ModelError(
            _("This model needs a package that is not installed."), where=where, found="timm", fix="`pip install timm`"
        )


def _needs_own_code(config: Mapping[str, Any], where: Path | str, kind: str) -> ModelError:
    files = sorted(
        {str(name).partition(".")[0] + ".py" for name in config["auto_map"].values() if isinstance(name, str)}
    )
    return ModelError(
        _("This model runs its own code, which lorafit runs only if you allow it."),
        where=where,
        found=", ".join([f"model_type: {kind}", *files]),
        fix=_("If you trust the author, add `--trust_remote_code`."),
    )


def _unknown(where: Path | str, kind: str) -> ModelError:
    return ModelError(
        _("The installed transformers does not know this model type."),
        where=where,
        found=f"model_type: {kind}",
        fix=_("Upgrade it: `{command}`").format(command=UPGRADE),
    )


def _not_a_decoder(where: Path | str, kind: str) -> ModelError:
    return ModelError(
        _("This model cannot be trained: only decoder language models can."),
        where=where,
        found=f"model_type: {kind}",
        fix=_("Choose a model that generates text, for example `--model_name Qwen/Qwen3-0.6B`."),
    )
