"""The class of transformers that makes the whole model of a config: text decoder, head, and towers if it has any."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from lorafit.errors import ModelError
from lorafit.messages import _


def model_class(config: PretrainedConfig, trust_remote_code: bool = False) -> type[PreTrainedModel]:
    """Return the class that takes the whole `config`: that of a causal LM if there is one, else that of image to text.

    Some types map their wrapper's config to a class of the text alone, which does not take it.
    Raises ModelError if transformers has no such class.
    """
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        with torch.device("meta"):  # the class lies in the model's own files, which only transformers reads
            return type(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        kind: Any = auto._model_mapping.get(type(config), None)  # type: ignore[attr-defined]
        if kind is not None and isinstance(config, kind.config_class):
            found: type[PreTrainedModel] = kind
            return found
    raise ModelError(_("The installed transformers has no text model of this type."), found=config.model_type)


def skeleton_of(config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return the model of `config` without memory for its weights: all modules by their names, on the meta device."""
    with torch.device("meta"):
        made: PreTrainedModel = model_class(config, trust_remote_code)._from_config(config)
    return made


def module_names(model: PreTrainedModel) -> list[str]:
    """Return the names of all modules of the base `model` as transformers makes it, without lorafit's layers.

    A part that was not loaded, such as a vision tower, counts: PEFT sees it.
    """
    try:
        with torch.device("meta"):
            whole = type(model)._from_config(model.config)
    except Exception:  # some classes of other authors need real tensors; then the names of what is loaded must do
        return [name for name, _module in model.named_modules() if not name.endswith(".base")]
    return [name for name, _module in whole.named_modules()]
