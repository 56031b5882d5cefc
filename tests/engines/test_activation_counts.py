"""The planner's activations of a layer are what autograd saves in transformers' own layers with lorafit's adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.skeletons import on_meta, write_skeleton
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from lorafit.engines.torch.lora import DropoutKeys, LoRALinear
from lorafit.models.spec import read_spec
from lorafit.planner.memory import Layout, layer_bytes

TOKENS, RANK = 256, 8
SIZES = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 64}  # fmt: skip
MOE = {"num_experts": 8, "moe_intermediate_size": 128}
DELTA = {"linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 64, "linear_value_head_dim": 64}
MAMBA = {"attn_layer_indices": [], "mamba_n_heads": 16, "mamba_d_head": 32, "mamba_d_state": 64, "mamba_n_groups": 1}
# A name -> the model type, its settings apart from SIZES for a number of layers, and the limit of the error.
CASES: dict[str, tuple[str, Any, float]] = {
    "dense": ("llama", lambda layers: {}, 0.01),
    "two experts": ("qwen3_moe", lambda layers: {**MOE, "num_experts_per_tok": 2}, 0.15),
    "four experts": ("qwen3_moe", lambda layers: {**MOE, "num_experts_per_tok": 4}, 0.15),
    "delta rule": ("qwen3_5_text", lambda layers: {**DELTA, "layer_types": ["linear_attention"] * layers}, 0.15),
    "mamba 2": ("bamba", lambda layers: {**MAMBA, "mamba_chunk_size": 64}, 0.15),
    "mamba 1": ("mamba", lambda layers: {"state_size": 16}, 0.15),
    "convolution": ("lfm2", lambda layers: {"layer_types": ["conv"] * layers}, 0.15),
}  # fmt: skip


def config_of(kind: str, settings: dict[str, Any], layers: int) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.for_model(kind, **SIZES, **settings, num_hidden_layers=layers)
    return config


def saved_bytes(config: PretrainedConfig, names: list[str]) -> int:
    """Return the bytes of all storages that autograd saves in a pass of the decoder, without weights."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).requires_grad_(False)
    for name in names:
        parent, _dot, leaf = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, leaf, LoRALinear(getattr(owner, leaf), name, RANK, 1.0, DropoutKeys(0.0)))
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    inputs = torch.randn(1, TOKENS, 256, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = model.base_model(inputs_embeds=inputs, use_cache=False)
    assert result is not None  # its graph keeps the saved tensors, so that no storage is counted for two
    return sum(t.untyped_storage().nbytes() for place, t in saved.items() if place not in own)


@pytest.mark.parametrize("case", CASES)
def test_activations_of_a_layer_are_what_autograd_saves(case: str, tmp_path: Path) -> None:
    kind, settings, limit = CASES[case]
    total, planned = [], 0
    for layers in (2, 4):
        config, folder = config_of(kind, settings(layers), layers), tmp_path / str(layers)
        write_skeleton(folder, on_meta(config))
        spec = read_spec(folder)
        layout = Layout("cpu", "fp32", "none", "adamw", RANK, "all-linear", TOKENS, TOKENS, 0, 32)
        planned = layer_bytes(spec, layout)
        total.append(saved_bytes(config, [linear.name for linear in spec.linears]))
    assert planned == pytest.approx((total[1] - total[0]) / 2, rel=limit)
