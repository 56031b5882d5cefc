"""A tiny random model of a family as a folder: weights, config, tokenizer and chat template."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from support.model_zoo.shapes import TEXT
from support.model_zoo.wrappers import WRAPPERS

SETTINGS = {**TEXT, **WRAPPERS}
TEMPLATE = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
SPECIAL = ("<|unknown|>", "<|im_start|>", "<|im_end|>")  # the token IDs 0 to 2


def model_type(name: str) -> str:
    """Return the model type of the row `name`."""
    return name.partition("+")[0]


def is_known(name: str) -> bool:
    """Return whether the installed transformers has the model type of the row `name`."""
    return model_type(name) in CONFIG_MAPPING


def save_family(name: str, folder: Path) -> PreTrainedModel:
    """Save a random model of the row `name` in `folder` and return it. Raises ValueError if its logits are not finite.

    Its weights are about as large as trained ones, so that every part of the model affects the output.
    """
    torch.manual_seed(0)
    kind = AutoModelForCausalLM if name in TEXT or name == "phi4_multimodal" else AutoModelForImageTextToText
    model = kind.from_config(AutoConfig.for_model(model_type(name), **SETTINGS[name])).eval()
    fill(model)
    with torch.no_grad():
        logits = text_logits(model, torch.arange(3, 20))
    if not logits.isfinite().all():
        raise ValueError("the logits are not finite")
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model


def text_logits(model: PreTrainedModel, ids_T: torch.Tensor) -> torch.Tensor:
    """Return the logits [T, V] of transformers' own forward over the token IDs `ids_T`, without a cache."""
    if model.config.model_type == "llama4":  # the forward of the whole fails without an image in transformers 5.24
        model = model.language_model
    logits: torch.Tensor = model(input_ids=ids_T[None], use_cache=False).logits[0]
    return logits


def fill(model: PreTrainedModel) -> None:
    """Set the matrices to random values by the number of their inputs, and shift the vectors from their start values."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2] in ("A_log", "D") or not parameter.numel():
                continue  # a state that grows instead of decaying gives infinite values
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2:
                parameter.copy_(noise * _scale(name, parameter))
            else:
                parameter.add_(noise * 0.15)


def _scale(name: str, parameter: torch.Tensor) -> float:
    if "embed" in name or ("gate" in name and "proj" not in name):  # embeddings, routers
        return 0.6
    return 0.5 if "conv" in name else float(parameter.shape[-1]) ** -0.5


def save_tokenizer(folder: Path) -> None:
    """Save a tokenizer of single bytes, and a chat template, in `folder`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate([*SPECIAL, *letters])}
    inner = Tokenizer(models.BPE(vocabulary, [], unk_token=SPECIAL[0]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2], pad_token=SPECIAL[2]
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
