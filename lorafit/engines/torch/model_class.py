"""The class of transformers that makes the whole model of a config: text decoder, head, and towers if it has any."""

from contextlib import suppress
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from lorafit.errors import ModelError
from lorafit.messages import _
from lorafit.run_folders.peft_form import BaseFacts, Form


def model_class(config: PretrainedConfig, trust_remote_code: bool = False) -> type[PreTrainedModel]:
    """Return the class that takes the whole `config`: that of a causal LM if there is one, else that of image to text.

    Some types map their wrapper's config to a class of the text alone, which does not take it.
    Raises ModelError if transformers has no such class.
    """
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        with torch.device("meta"):  # the class lies in the model's own files, which only transformers reads
            return type(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        kind: Any = auto._model_mapping.get(type(config), None)
        if kind is not None and isinstance(config, kind.config_class):
            found: type[PreTrainedModel] = kind
            return found
    raise ModelError(_("The installed transformers has no text model of this type."), found=config.model_type)


def skeleton_of(config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return the model of `config` without memory for its weights: all modules by their names, on the meta device."""
    with torch.device("meta"):
        made: PreTrainedModel = model_class(config, trust_remote_code)._from_config(config)
    return made


def loader_settings(config: PretrainedConfig, kind: type[PreTrainedModel]) -> Form:
    """Return the settings that let peft find the class `kind`, if AutoModelForCausalLM makes another one of `config`.

    With them, AutoPeftModel loads base and adapter, instead of AutoPeftModelForCausalLM.
    """
    known: Any = AutoModelForCausalLM._model_mapping
    if getattr(config, "auto_map", None) or known.get(type(config), None) is kind:
        return {}
    return {"task_type": None, "auto_mapping": {"base_model_class": kind.__name__, "parent_library": kind.__module__}}


def base_facts(model: PreTrainedModel) -> BaseFacts:
    """Return what PEFT sees of the base `model` as transformers makes it: all modules, without lorafit's layers.

    A part that was not loaded, such as a vision tower, counts.
    """
    names = [name for name, _module in model.named_modules() if not name.endswith(".base")]
    with suppress(Exception), torch.device("meta"):  # some classes of other authors need real tensors
        names = [name for name, _module in type(model)._from_config(model.config).named_modules()]
    return BaseFacts(model.config.model_type, names, loader_settings(model.config, type(model)))
