"""Small models with random weights off every grid, for exports.

They are 256 wide, so that K-quants have whole blocks. Their logits differ by 1 to 3, as those of trained models do.
"""

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from safetensors.numpy import load_file, save_file
from support.gguf_models import SPECIAL, write_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lorafit.data.conversation import Message
from lorafit.engines.tokenizer import load_tokenizer
from lorafit.exporters.gguf.pre_tokenizers import NAMES
from lorafit.exporters.gguf.pre_tokenizers import PROBE as PRE_PROBE
from lorafit.exporters.texts import probe_strings

ANSWER = "{{ m.content + '<|end|>\\n' }}"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\\n' }}"
    + ANSWER
    + "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
MARKED = TEMPLATE.replace(
    ANSWER,
    f"{{% if m.role == 'assistant' %}}{{% generation %}}{ANSWER}{{% endgeneration %}}{{% else %}}{ANSWER}{{% endif %}}",
)
NO_BOS = TEMPLATE.removeprefix("{{ bos_token }}")
SHAPE: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 64,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WINDOW = {"sliding_window": 32, "query_pre_attn_scalar": 64}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
TYPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False, "rope_theta": 5e5}),
    "mistral": ("MistralConfig", {"sliding_window": None, "rope_theta": 1e6}),
    "qwen2": ("Qwen2Config", {"use_sliding_window": False, "tie_word_embeddings": True, "rope_theta": 1e6}),
    "qwen3": ("Qwen3Config", {"rope_theta": 1e6}),
    "gemma2": ("Gemma2Config", WINDOW),
    "gemma3_text": ("Gemma3TextConfig", {**WINDOW, "num_hidden_layers": 7}),
    "phi3": ("Phi3Config", {"original_max_position_embeddings": 512}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3MoeConfig", EXPERTS),
    "granite": ("GraniteConfig", {"logits_scaling": 1.0, "residual_multiplier": 0.8, "attention_multiplier": 0.125}),
    "olmo2": ("Olmo2Config", {}),
    "glm4": ("Glm4Config", {}),
}
LLAMA_3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 64}  # fmt: skip
BYTE_LEVEL = ("qwen2", "qwen3", "mixtral", "qwen3_moe", "granite", "olmo2", "glm4")
# The expression at which Qwen's tokenizer splits a text.
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
HEAD, GEMMA_HEAD = 0.15, 0.04  # of the head's values; Gemma multiplies its embedding by 16
ROWS = 24


def make_base(folder: Path, family: str, template: str = TEMPLATE, dtype: str = "float32", **changes: Any) -> Path:
    """Save a random model of `family` in `folder`, with tokenizer and `template`, and return `folder`."""
    folder.mkdir(parents=True)
    rows = (write_byte_tokenizer if family in BYTE_LEVEL else write_tokenizer)(folder) + 5
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    name, special = TYPES[family]
    settings = {**SHAPE, **special, "vocab_size": rows, **changes}
    theta = settings.pop("rope_theta", None)
    if theta is not None:
        settings.setdefault("rope_parameters", {"rope_type": "default", "rope_theta": theta})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings))
    _fill(model, GEMMA_HEAD if family.startswith("gemma") else HEAD)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def write_byte_tokenizer(folder: Path) -> int:
    """Write a byte-level tokenizer as Qwen's into `folder`, and return the number of its tokens.

    The exporter is told its name, as it knows those of published models.
    """
    inner = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(QWEN), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    inner.normalizer, inner.decoder = normalizers.NFC(), decoders.ByteLevel()
    texts = [turn.content for turns in conversations(0) for turn in turns]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([*(f"{text}\n" for text in texts), *probe_strings()], trainer)
    names = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=False))
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
    content = load_tokenizer(folder).inner.backend_tokenizer
    ids = content.encode(PRE_PROBE, add_special_tokens=False).ids
    NAMES[sha256(str(ids).encode()).hexdigest()] = "qwen2"
    return int(inner.get_vocab_size())


def _fill(model: Any, head: float) -> None:
    """Set matrices to random values by the number of their inputs, and shift vectors from their start values.

    Norms of query and key differ much between channels, as in trained models.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("q_norm.weight", "k_norm.weight")) and head == HEAD:
                parameter.copy_((0.35 * noise).exp())
            elif parameter.dim() < 2:
                parameter.add_(noise * 0.15)
            elif "embed" in name or "lm_head" in name:
                parameter.copy_(noise * head)
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)


def change_weights(folder: Path, change: Any) -> None:
    """Replace the tensors of the model in `folder` by `change` of them, a function of the dict of all tensors."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def onto_grid(kind: str) -> Any:
    """Return a function that rounds the matrices to the GGUF type `kind`, and takes them back to float32."""
    dtype = GGMLQuantizationType[kind.upper()]

    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        return {
            name: dequantize(quantize(values, dtype), dtype).astype(np.float32) if values.ndim == 2 else values
            for name, values in tensors.items()
        }

    return change


def conversations(seed: int) -> list[list[Message]]:
    """Return short questions with answers."""
    rng = np.random.default_rng(seed)
    things = ("lease", "trial period", "rent", "notice", "contract")
    found = []
    for number in rng.integers(2, 99, ROWS):
        thing = things[int(number) % len(things)]
        asked, answer = (
            (f"How long is the {thing}, case {number}?", f"The {thing} of case {number} is {number + 1} days.")
            if number % 3
            else (f"第{number}号的期限？", f"期限是{number + 1}天。")
        )
        found.append([Message("user", asked), Message("assistant", answer)])
    return found
