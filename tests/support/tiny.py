"""Small real models with random weights, and plans and samples for them: for engine tests."""

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from lorafit.engines.base import Setup
from lorafit.engines.torch.engine import TorchEngine
from lorafit.models.spec import TOKENIZER_FILES
from lorafit.planner.plan import Plan
from support.plans import VOCAB as VOCAB
from support.plans import make_plan as make_plan
from support.plans import make_samples as make_samples

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"sliding_window": 8}),
    "qwen2": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gemma2": ("Gemma2Config", {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    "phi3": ("Phi3Config", {"sliding_window": None}),
    "granite": ("GraniteConfig", {"logits_scaling": 4.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5}),
    "cohere": ("CohereConfig", {"logit_scale": 0.25}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}
# Types that people tune now.
NEWEST: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_5": ("Qwen3_5TextConfig", {
        "num_hidden_layers": 4, "head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8}),
    "gemma4": ("Gemma4TextConfig", {
        "num_hidden_layers": 4, "head_dim": 8, "global_head_dim": 16, "sliding_window": 8, "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]}),
    "glm4_moe": ("Glm4MoeConfig", {
        "head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1,
        "first_k_dense_replace": 1}),
}  # fmt: skip
# Models whose samples cannot be packed, each for a different reason.
LONERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama4": ("Llama4TextConfig", {  # attention in chunks
        "attention_chunk_size": 8, "num_local_experts": 4, "intermediate_size_mlp": 64, "interleave_moe_layer_step": 2,
        "num_hidden_layers": 4, "head_dim": 8}),
    "gpt_oss": ("GptOssConfig", {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),  # attention sinks
    "recurrent_gemma": ("RecurrentGemmaConfig", {"lru_width": 32, "attention_window_size": 8}),  # a recurrent state and a soft cap
    "mamba": ("MambaConfig", {"state_size": 8, "num_hidden_layers": 2}),  # uses weights without calling their layer
    "bamba": ("BambaConfig", {  # a recurrent state; needs positions for each token of an answer
        "num_hidden_layers": 4, "attn_layer_indices": [2], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8,
        "mamba_n_groups": 1, "mamba_chunk_size": 8}),
    "minimax": ("MiniMaxConfig", {"num_local_experts": 4, "num_hidden_layers": 4, "block_size": 8, "head_dim": 8}),  # its own cache
    "rwkv": ("RwkvConfig", {"context_length": 128, "attention_hidden_size": 32}),  # its state is no cache
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4}),  # no linear layers
}  # fmt: skip


def save_model(family: str, folder: Path, **changes: Any) -> Path:
    """Save a random model of `family` in `folder` and return `folder`.

    Its weights are so large that every part of the model affects the output.
    """
    name, special = (FAMILIES | NEWEST | LONERS)[family]
    return save_random(getattr(transformers, name)(**{**SHAPE, **special, **changes}), folder)


def save_random(config: Any, folder: Path, auto: Any = transformers.AutoModelForCausalLM) -> Path:
    """Save a random model of `config` in `folder`, by transformers' class `auto`, and return `folder`."""
    torch.manual_seed(0)
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


def save_chat_model(folder: Path, demo_folder: Path, **changes: Any) -> Path:
    """Save a random Llama with the demo's tokenizer and chat template, which trains in about a second."""
    save_model("llama", folder, vocab_size=49_152, **changes)
    for path in demo_folder.iterdir():
        if path.name in TOKENIZER_FILES or path.suffix == ".jinja":
            shutil.copy(path, folder)
    return folder


def open_engine(folder: Path, plan: Plan | None) -> TorchEngine:
    """Open the model in `folder` with PyTorch, for training with `plan` or, without a plan, for answers only."""
    facts = plan or make_plan()
    return TorchEngine.open(Setup(folder, str(folder), facts.device, facts.precision, facts.quantization, plan=plan))


def fill_b(engine: TorchEngine, seed: int = 1) -> None:
    """Set every lora_B to random values, so that no gradient is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in engine.layers.values():
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.05)


def gradients(engine: TorchEngine, step: int, micro_batches: list[Any], total_targets: int) -> dict[str, torch.Tensor]:
    """Return the gradients of one step by parameter name, before clipping."""
    engine._accumulate(step, micro_batches, total_targets)
    grads = {name: p.grad.clone() for name, p in engine._parameters().items() if p.grad is not None}
    engine.optimizer.drop_gradients()
    return grads


def worst(found: dict[str, Any], wanted: dict[str, Any]) -> float:
    """Return the largest relative distance, by norm, between a tensor and the wanted tensor."""
    assert found.keys() == wanted.keys()
    return max(float((found[n] - wanted[n]).norm() / wanted[n].norm().clamp_min(1e-20)) for n in wanted)
