"""Models of known architectures with random weights, made once in the cache, for use where real weights are absent.

Speed and memory depend on the architecture alone. The tokenizer is the demo model's: its ids lie within every
vocabulary here.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from lorafit.models.demo import demo_model
from lorafit.paths import cache_folder

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {
        **LLAMA,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
    },
    "llama-3.2-3b": {
        **LLAMA,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "gelu-0.1b": {  # the demo model's shape with an activation that lorafit's fast path does not support
        **LLAMA,
        "hidden_act": "gelu",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
    },
    "qwen2.5-0.5b": {
        **LLAMA,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
}
WEIGHTS = "*.safetensors"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def shape_folder(name: str) -> Path:
    """Return a cached model folder of the architecture `name`, with random bf16 weights.

    Matrices are normal with standard deviation 0.02, vectors are ones. Layers are made one at a time to save memory.
    """
    folder = cache_folder() / "shapes" / name
    if (folder / "model.safetensors.index.json").is_file():
        return folder
    config, demo = SHAPES[name], demo_model()
    folder.mkdir(parents=True, exist_ok=True)
    for file in TOKENIZER:
        shutil.copy(demo / file, folder / file)
    write_model(folder, config)
    return folder


def write_model(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json and random bf16 weights into `folder`; the index comes last, as the sign that all are there."""
    import torch
    from safetensors.torch import save_file

    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    generator, index = torch.Generator().manual_seed(0), {}
    parts = [_outside(config), *(_layer(config, number) for number in range(config["num_hidden_layers"]))]
    for number, shapes in enumerate(parts):
        file = f"model-{number:05}.safetensors"
        tensors = {
            name: torch.ones(shape, dtype=torch.bfloat16)
            if len(shape) == 1
            else torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, file))
    whole = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(whole) + "\n", "utf-8")


def _outside(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden = config["hidden_size"]
    return {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}


def _layer(config: dict[str, Any], number: int) -> dict[str, tuple[int, ...]]:
    hidden, wide, width = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    linears = {"self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden)}
    linears |= {"self_attn.o_proj": (hidden, q), "mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden)}
    parts: dict[str, tuple[int, ...]] = {**linears, "mlp.down_proj": (hidden, wide)}
    if config["model_type"] == "qwen2":
        biases = {"q_proj": q, "k_proj": kv, "v_proj": kv}
        shapes = {f"model.layers.{number}.self_attn.{name}.bias": (size,) for name, size in biases.items()}
    else:
        shapes = {}
    parts |= {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
    return {f"model.layers.{number}.{name}.weight": shape for name, shape in parts.items()} | shapes


def fp32_copy(model: Path) -> Path:
    """Return a cached copy of `model` with fp32 weights, for a peer that trains in the dtype of the weight files."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = cache_folder() / "peers" / f"{model.name}-fp32"
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for file in model.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            shutil.copy(file, folder)
    for file in model.glob(WEIGHTS):
        tensors = {name: tensor.to(torch.float32) for name, tensor in load_file(file).items()}
        save_file(tensors, folder / file.name, metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}) + "\n", "utf-8")
    return folder
