"""Model folders without weights: config.json, a tokenizer's stub, and safetensors files of the right names and sizes.

The models are those of transformers on the meta device. The files are sparse: they take no room on the disk.
"""

import json
import warnings
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig
from transformers.core_model_loading import revert_weight_conversion

SIZES: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "pad_token_id": 2, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
SHARED = {"shared_expert_intermediate_size": 64}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_shared_experts": 1,
          "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}  # fmt: skip
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
          "num_key_value_heads": 4, "head_dim": None}  # fmt: skip
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16}
INDEXER = {"index_topk": 16, "index_head_dim": 16, "index_n_heads": 2}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
MAMBAS = ["mamba", "mamba", "attention", "mamba"]
CONVS = ["conv", "conv", "full_attention", "conv"]
WINDOWS = ["sliding_attention", "full_attention"] * 2
PICTURE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
           "patch_size": 14}  # fmt: skip
QWEN_PICTURE = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
                "num_position_embeddings": 16, "patch_size": 14}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
NEMOTRON = {"layers_block_type": ["mamba", "moe", "attention", "mlp"], "mamba_num_heads": 8, "mamba_head_dim": 16,
            "ssm_state_size": 16, "n_groups": 1, "chunk_size": 16, "moe_shared_expert_intermediate_size": 64}  # fmt: skip
GEMMA = {"sliding_window": 16, "layer_types": WINDOWS, "vocab_size_per_layer_input": 512}
ZAMBA = {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "mamba_d_state": 16, "n_mamba_heads": 8,
         "mamba_headdim": 16, "mamba_ngroups": 1, "chunk_size": 16, "num_mem_blocks": 1, "num_key_value_heads": 4,
         "head_dim": None}  # fmt: skip
# A name -> the model type and the settings that differ from SIZES.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "phi3": ("phi3", {}),
    "gpt_neox": ("gpt_neox", {}),
    "starcoder2": ("starcoder2", {}),
    "qwen2_moe": ("qwen2_moe", {**MOE, **SHARED}),
    "qwen3_moe": ("qwen3_moe", MOE),
    "qwen3_next": ("qwen3_next", {**MOE, **SHARED, **DELTA}),
    "qwen3_5_moe_text": ("qwen3_5_moe_text", {**MOE, **SHARED, **DELTA}),
    "mixtral": ("mixtral", LOCAL),
    "gpt_oss": ("gpt_oss", {**LOCAL, "sliding_window": 16}),
    "granitemoe": ("granitemoe", LOCAL),
    "granitemoehybrid": ("granitemoehybrid", {**LOCAL, **MAMBA, "layer_types": MAMBAS, "shared_intermediate_size": 64}),
    "phimoe": ("phimoe", LOCAL),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", {"num_experts": 4, "moe_topk": 2}),
    "afmoe": ("afmoe", {**MOE, "sliding_window": 16}),
    "deepseek_v2": ("deepseek_v2", {**ROUTED, **LATENT}),
    "deepseek_v3": ("deepseek_v3", {**ROUTED, **LATENT}),
    "deepseek_v32": ("deepseek_v32", {**ROUTED, **LATENT, **INDEXER}),
    "glm4_moe": ("glm4_moe", ROUTED),
    "lfm2_moe": ("lfm2_moe", {**MOE, "layer_types": CONVS, "num_dense_layers": 1}),
    "bamba": ("bamba", {**MAMBA, "attn_layer_indices": [2]}),
    "falcon_h1": ("falcon_h1", {**MAMBA, "mamba_d_ssm": 128}),
    "jamba": ("jamba", {"num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
                        "expert_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False}),
    "nemotron_h": ("nemotron_h", {**ROUTED, **NEMOTRON}),
    "mamba": ("mamba", {"state_size": 16}),
    "mamba2": ("mamba2", {"num_heads": 8, "state_size": 16, "n_groups": 1, "chunk_size": 16, "expand": 2}),
    "rwkv": ("rwkv", {"context_length": 128, "attention_hidden_size": 64}),
    "zamba2": ("zamba2", ZAMBA),
    "gemma2": ("gemma2", {"sliding_window": 16}),
    "gemma4_text": ("gemma4_text", {**GEMMA, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2}),
    "gemma4_moe_text": ("gemma4_text", {**GEMMA, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
                                        "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
                                        "moe_intermediate_size": 64}),
    "gemma3": ("gemma3", {"text_config": SIZES, "vision_config": PICTURE, "mm_tokens_per_image": 4}),
    "qwen2_5_vl": ("qwen2_5_vl", {"text_config": {**SIZES, "rope_parameters": MROPE}, "vision_config": QWEN_PICTURE}),
    "qwen3_vl": ("qwen3_vl", {"text_config": {**SIZES, "rope_parameters": MROPE},
                              "vision_config": {**QWEN_PICTURE, "deepstack_visual_indexes": [0]}}),
    "qwen3_5": ("qwen3_5", {"text_config": {**SIZES, **DELTA}, "vision_config": QWEN_PICTURE}),
    "qwen3_5_moe": ("qwen3_5_moe", {"text_config": {**SIZES, **MOE, **SHARED, **DELTA}, "vision_config": QWEN_PICTURE}),
    "mistral3": ("mistral3", {"text_config": {**SIZES, "model_type": "ministral3"},
                              "vision_config": {**PICTURE, "model_type": "pixtral", "head_dim": 16}}),
    "smolvlm": ("smolvlm", {"text_config": {**SIZES, "model_type": "llama"}, "vision_config": PICTURE}),
    "llama4": ("llama4", {
        "text_config": {**SIZES, "intermediate_size_mlp": 128, "num_local_experts": 4, "num_experts_per_tok": 1,
                        "interleave_moe_layer_step": 2, "attention_chunk_size": 16},
        "vision_config": {**PICTURE, "num_channels": 3, "vision_output_dim": 32, "projector_input_dim": 32,
                          "projector_output_dim": 32}}),
}  # fmt: skip


def family_config(name: str) -> PretrainedConfig:
    """Return the config of a small model of FAMILIES."""
    kind, own = FAMILIES[name]
    sizes = {} if "text_config" in own else SIZES
    settings = {key: value for key, value in {**sizes, **own}.items() if value is not None}
    config: PretrainedConfig = AutoConfig.for_model(kind, **settings)
    return config


def on_meta(config: PretrainedConfig) -> Any:
    """Return the model of `config` without weights: of a wrapper the whole, with its towers."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if config.get_text_config() is config:
            return AutoModelForCausalLM.from_config(config)
        return AutoModelForImageTextToText.from_config(config)


def write_skeleton(folder: Path, model: Any) -> None:
    """Write the folder of `model`, which is on the meta device, with bfloat16 weights by their names in its files."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    (folder / "config.json").write_text(json.dumps(config, default=str))
    (folder / "tokenizer.json").write_text("{}")
    tied = set(model.all_tied_weights_keys)
    state = revert_weight_conversion(model, {k: v for k, v in model.state_dict().items() if k not in tied})
    entries, end = {}, 0
    for name, tensor in state.items():
        size = 2 * prod(tensor.shape)
        entries[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(entries).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + end)
