"""Configs of small models whose adapters peft could load as something else: type -> the settings beside SHAPE."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from lorafit.engines.torch.model_class import model_class
from support.plans import VOCAB

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1,
          "first_k_dense_replace": 1}  # fmt: skip
GROUPS = ROUTED | {"n_routed_experts": 8, "n_group": 2, "topk_group": 1}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
          "num_key_value_heads": 4}  # fmt: skip
INDEXER = {"index_topk": 16, "index_head_dim": 16, "index_n_heads": 2}
WINDOWS = {"sliding_window": 8, "num_hidden_layers": 4}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
         "num_hidden_layers": 4}  # fmt: skip
STATES = {"mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "image_size": 28, "patch_size": 14}  # fmt: skip
ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
IMAGES = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}

# peft turns the names of the dense or shared layers' projections into names of experts (peft issue 3711).
MOE: dict[str, dict[str, Any]] = {
    "afmoe": EXPERTS | WINDOWS,
    "deepseek_v2": LATENT | ROUTED,
    "deepseek_v3": LATENT | GROUPS,
    "deepseek_v32": LATENT | GROUPS | INDEXER,
    "dots1": ROUTED,
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_num_shared_experts": 1,
                     "moe_layer_start_index": 1},
    "exaone_moe": EXPERTS | WINDOWS | {"sliding_window_pattern": 4},
    "glm4_moe": ROUTED,
    "glm4_moe_lite": LATENT | ROUTED,
    "glm_moe_dsa": LATENT | ROUTED | INDEXER,
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "qwen3_next": EXPERTS | DELTA | {"shared_expert_intermediate_size": 16},
    "solar_open": EXPERTS,
}  # fmt: skip
# Short names match other modules too: towers, layers of a shared block, experts.
AMBIGUOUS: dict[str, dict[str, Any]] = {
    "qwen3_moe": EXPERTS | {"mlp_only_layers": [0]},
    "zamba2": {"num_hidden_layers": 6, "layers_block_type": ["mamba", "hybrid", "mamba", "mamba", "hybrid", "mamba"],
               "mamba_d_state": 8, "n_mamba_heads": 8, "mamba_headdim": 8, "mamba_ngroups": 1, "chunk_size": 8,
               "num_mem_blocks": 1, "num_key_value_heads": 4, "use_mem_rope": True, "head_dim": 16},
    "gemma4_text": WINDOWS | {
        "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2,
        "global_head_dim": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]},
    "bamba": STATES | {"num_hidden_layers": 3, "attn_layer_indices": [1], "mamba_n_heads": 8},
}  # fmt: skip
# Models with a tower, as on the hub.
WRAPPERS: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": SHAPE | {"sliding_window": 8, "query_pre_attn_scalar": 8}, "vision_config": TOWER,
               "image_token_index": 60, "boi_token_index": 61, "eoi_token_index": 62, "mm_tokens_per_image": 4},
    "mistral3": {"text_config": SHAPE | {"model_type": "ministral3"}, "image_token_index": 60,
                 "vision_config": TOWER | {"model_type": "pixtral", "head_dim": 16}},
    "qwen3_vl": {"text_config": SHAPE | ROTARY, **IMAGES,
                 "vision_config": {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
                                   "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}},
    "qwen2_5_vl": {"text_config": SHAPE | ROTARY, **IMAGES,
                   "vision_config": {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
                                     "out_hidden_size": 32, "fullatt_block_indexes": [1]}},
    "internvl": {"text_config": SHAPE | {"model_type": "qwen3"}, "image_token_id": 60,
                 "vision_config": TOWER | {"image_size": [28, 28], "patch_size": [14, 14]}},
}  # fmt: skip
# peft refuses their out_proj in every form.
MAMBA: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8, "expand": 2},
    "falcon_h1": STATES | {"mamba_d_ssm": 32, "mamba_n_heads": 4},
    "nemotron_h": {"layers_block_type": ["mamba", "mlp", "attention"], "num_hidden_layers": 3, "mamba_num_heads": 8,
                   "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8},
}  # fmt: skip
FAMILIES = MOE | AMBIGUOUS | WRAPPERS | MAMBA


def save_family(kind: str, folder: Path) -> Path:
    """Save a random model of the type `kind` in `folder` and return `folder`."""
    shape = {} if kind in WRAPPERS else SHAPE
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **shape | FAMILIES[kind])
    model = model_class(config)._from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder
