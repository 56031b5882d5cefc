"""The transformers class of a base model, and its text part.

The class is the one with the names of config.json's `architectures`, so that an adapter has the names that other programs
use. A multimodal class is loaded without its vision and audio towers: text passes do not need them.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from lorafit.engines.base import Setup
from lorafit.errors import ModelError
from lorafit.messages import _
from lorafit.run_folders.peft_form import BaseFacts, Form

TRIAL_IDS = [[0, 1, 2]]  # token IDs of the pass that shows which towers a text needs


def read_config(setup: Setup) -> PretrainedConfig:
    """Return config.json as transformers reads it. Raises the errors of transformers."""
    config: PretrainedConfig = AutoConfig.from_pretrained(
        setup.folder, trust_remote_code=setup.trust_remote_code, local_files_only=True
    )
    return config


def model_class(config: PretrainedConfig, trust_remote_code: bool = False) -> Any:
    """Return the class that takes the whole `config`: that of a causal LM if there is one, else that of image to text.

    Some types map a multimodal config to a class of the text alone, which does not take it. Raises ModelError.
    """
    if trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        with torch.device("meta"):  # the class lies in the model's own files, which only transformers reads
            return type(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))
    if getattr(config.get_text_config(), "is_encoder_decoder", False):
        raise _untrainable(config)
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    whole: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    kind = whole if causal is None or (whole is not None and causal.config_class is not type(config)) else causal
    if kind is None:
        raise _untrainable(config)
    return kind


def text_class(config: PretrainedConfig, trust_remote_code: bool = False) -> Any:
    """Return model_class() without vision and audio towers. Raises ModelError."""
    kind = model_class(config, trust_remote_code)
    return kind if config.get_text_config() is config else _without_towers(kind)


def _untrainable(config: PretrainedConfig) -> ModelError:
    return ModelError(
        _("This model cannot be trained: only decoder language models can."),
        where=config.name_or_path or None,
        found=f"model_type: {config.model_type}",
        fix=_("Choose a model that generates text, for example `--model_name Qwen/Qwen3-0.6B`."),
    )


def _without_towers(kind: Any) -> Any:
    """Return `kind` as a class whose models have no towers; transformers finds the same source, name and settings."""

    def build(self: Any, *args: Any, **options: Any) -> None:
        kind.__init__(self, *args, **options)
        _remove_towers(self)

    body = {
        "__init__": build,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "with_towers": kind,
    }
    return type(kind.__name__, (kind,), body)


def _remove_towers(model: PreTrainedModel) -> None:
    """Set the modules beside the text decoder to None, except those that a pass over text needs."""
    kept = [decoder_of(model), model.get_input_embeddings(), model.get_output_embeddings()]
    towers = list(_outside(model, kept))
    for owner, name, _module in towers:
        setattr(owner, name, None)
    if _passes(model):
        return
    for owner, name, module in towers:
        setattr(owner, name, module)
    for owner, name, module in towers:
        setattr(owner, name, None)
        if not _passes(model):
            setattr(owner, name, module)


def _outside(module: nn.Module, kept: list[nn.Module | None]) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yield owner, name and module of the largest modules below `module` that hold none of `kept`."""
    for name, child in module.named_children():
        if child in kept:
            continue
        if any(part in kept for part in child.modules()):
            yield from _outside(child, kept)
        else:
            yield module, name, child


def _passes(model: PreTrainedModel) -> bool:
    """Return whether a pass over text reaches no removed module. Other errors of the meta device do not count."""
    if next(model.parameters()).device.type != "meta":
        return True
    try:
        with torch.no_grad():
            causal_lm_of(model)(input_ids=torch.tensor(TRIAL_IDS, device="meta"), use_cache=False)
    except (AttributeError, TypeError) as error:
        return "NoneType" not in str(error)
    except Exception:  # a pass without numbers may fail at any operation that needs some
        return True
    return True


def causal_lm_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the module that computes the logits of a text: `model`, or a part of it that has an LM head of its own."""
    part: Any = model.get_decoder()
    found: PreTrainedModel = part if getattr(part, "lm_head", None) is not None else model  # a part in Llama 4
    return found


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """Return the module that computes the hidden states of a text: no LM head, no vision or audio tower."""
    whole = causal_lm_of(model)
    decoder: nn.Module = whole.get_decoder()
    return getattr(whole, "model", decoder) if decoder is whole else decoder  # Llama 4 returns itself


def skeleton_of(config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return the whole model of `config` without memory for its weights, on the meta device."""
    with torch.device("meta"):
        made: PreTrainedModel = model_class(config, trust_remote_code)._from_config(config)
    return made


def loader_settings(config: PretrainedConfig, kind: Any) -> Form:
    """Return the settings that let peft find the class `kind`, if AutoModelForCausalLM makes another one of `config`.

    With them, AutoPeftModel loads base and adapter, instead of AutoPeftModelForCausalLM.
    """
    known: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    if getattr(config, "auto_map", None) or known.get(type(config), None) is kind:
        return {}
    return {"task_type": None, "auto_mapping": {"base_model_class": kind.__name__, "parent_library": kind.__module__}}


def base_facts(model: PreTrainedModel) -> BaseFacts:
    """Return what PEFT sees of the base `model` as transformers makes it: all modules, without lorafit's layers.

    A part that was not loaded, such as a vision tower, counts.
    """
    kind = getattr(type(model), "with_towers", type(model))
    names = [name for name, _module in model.named_modules() if not name.endswith(".base")]
    with suppress(Exception), torch.device("meta"):  # some classes of other authors need real tensors
        names = [name for name, _module in kind._from_config(model.config).named_modules()]
    return BaseFacts(model.config.model_type, names, loader_settings(model.config, kind))
