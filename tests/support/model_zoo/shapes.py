"""Settings of tiny text models by family: the changes to the defaults of the family's config class in transformers.

A key is a model type, with `+` and a word if a type has several rows. Windows, chunks, blocks and the tokens that a
sparse attention selects have the size BOUNDARY, so that samples of some tens of tokens pass over all of them.
"""

from typing import Any

Settings = dict[str, Any]

VOCAB = 512  # bytes, a few special tokens, and the placeholders of images and sounds from 480 on
BOUNDARY = 16
IDS: Settings = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
DENSE: Settings = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, **IDS,
}  # fmt: skip
ONE_WIDTH = {key: value for key, value in DENSE.items() if key != "head_dim"}  # the class computes the heads' width
STATES: Settings = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 3, "state_size": 16, **IDS}  # no heads
FOUR: Settings = {"num_hidden_layers": 4}
WINDOW: Settings = {"sliding_window": BOUNDARY}
GATED_DELTA: Settings = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16, **FOUR,
}  # fmt: skip
LINEAR: Settings = {"linear_head_dim": 16, "linear_num_heads": 4, **FOUR}
LATENT: Settings = {
    "q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "num_key_value_heads": 4,
}  # fmt: skip
# A score is a sum over heads of what is above zero: with few heads many scores are 0, and which of them are the largest
# depends on the length of the text.
INDEXER: Settings = {"index_topk": BOUNDARY, "index_head_dim": 16, "index_n_heads": 16}
MAMBA: Settings = {
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": BOUNDARY,
}  # fmt: skip
NEMOTRON: Settings = {
    "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 1, "chunk_size": BOUNDARY, **FOUR,
}  # fmt: skip
TWO: Settings = {"num_experts_per_tok": 2}
EXPERTS: Settings = {"num_experts": 4, "moe_intermediate_size": 64, **TWO}
LOCAL: Settings = {"num_local_experts": 4, **TWO}
ROUTED: Settings = {"n_routed_experts": 4, "moe_intermediate_size": 64, **TWO}
SHARED: Settings = {**ROUTED, "n_shared_experts": 1, "first_k_dense_replace": 1}
GROUPED: Settings = {**SHARED, "n_routed_experts": 8, "n_group": 2, "topk_group": 1}
ALL = "full_attention"
NEAR = "sliding_attention"
COMPRESSED = "compressed_sparse_attention"  # of DeepSeek V4, as the next one
SUMMARIZED = "heavily_compressed_attention"
ONE_ATTENTION = ["mamba", "mamba", "attention", "mamba"]
ONE_FULL = ["conv", "conv", ALL, "conv"]
GEMMA: Settings = {**WINDOW, "query_pre_attn_scalar": 16}
GEMMA_4: Settings = {**FOUR, **WINDOW, "global_head_dim": 32, "layer_types": [NEAR, ALL, NEAR, ALL]}


def dense(*changes: Settings, **more: Any) -> Settings:
    """Return the settings of a decoder with `changes`, the later ones first in rank."""
    found = dict(DENSE)
    for change in changes:
        found |= change
    return found | more


def latent(*changes: Settings, **more: Any) -> Settings:
    """Return the settings of a decoder with latent attention, whose config class computes the heads' width."""
    return {key: value for key, value in dense(LATENT, *changes, **more).items() if key != "head_dim"}


TEXT: dict[str, Settings] = {
    "llama": dense(),
    "llama4_text": dense(FOUR, intermediate_size_mlp=128, num_local_experts=4, num_experts_per_tok=1,
                         interleave_moe_layer_step=2, attention_chunk_size=BOUNDARY),
    "mistral": dense(WINDOW),
    "ministral": dense(WINDOW),
    "ministral3": dense(),
    "mixtral": dense(LOCAL),
    "qwen2": dense(),
    "qwen2+window": dense(WINDOW, use_sliding_window=True, max_window_layers=1),
    "qwen2_moe": dense(EXPERTS, shared_expert_intermediate_size=64),
    "qwen3": dense(),
    "qwen3_moe": dense(EXPERTS),
    "qwen3_next": dense(EXPERTS, GATED_DELTA, shared_expert_intermediate_size=64),
    "qwen3_5_text": dense(GATED_DELTA),
    "qwen3_5_moe_text": dense(EXPERTS, GATED_DELTA, shared_expert_intermediate_size=64),
    "qwen4_exp_text": dense(EXPERTS, GATED_DELTA, shared_expert_intermediate_size=64, hc_lowrank=16, ple_embed_dim=64,
                            indexer_n_heads=16, indexer_kv_heads=1, indexer_head_dim=16, indexer_budget=BOUNDARY,
                            indexer_compress_ratio=4, ngram_vocab_size_base=256, split_ngram_parts=1),
    "gemma": dense(),
    "gemma2": dense(GEMMA),
    "gemma3_text": dense(GEMMA, layer_types=[NEAR, ALL, NEAR]),
    "gemma3n_text": dense(WINDOW, num_hidden_layers=5, vocab_size_per_layer_input=VOCAB, hidden_size_per_layer_input=8,
                          laurel_rank=8, num_kv_shared_layers=2, layer_types=[NEAR, ALL, NEAR, NEAR, ALL],
                          intermediate_size=[128] * 5, activation_sparsity_pattern=[0.0] * 5),
    "gemma4_text": dense(GEMMA_4, vocab_size_per_layer_input=VOCAB, hidden_size_per_layer_input=8, num_kv_shared_layers=2),
    "gemma4_text+experts": dense(GEMMA_4, hidden_size_per_layer_input=0, num_kv_shared_layers=0, enable_moe_block=True,
                                 num_experts=4, top_k_experts=2, moe_intermediate_size=64),
    "vaultgemma": dense(GEMMA),
    "phi": dense(),
    "phi3": dense(),
    "phimoe": dense(num_local_experts=4),
    "gpt_oss": dense(FOUR, WINDOW, LOCAL),
    "glm": dense(),
    "glm4": dense(),
    "glm4_moe": dense(SHARED),
    "glm4_moe_lite": dense(LATENT, SHARED),
    "glm_moe_dsa": dense(LATENT, SHARED, INDEXER),
    "deepseek_v2": dense(LATENT, SHARED),
    "deepseek_v3": latent(GROUPED),
    "deepseek_v32": dense(LATENT, GROUPED, INDEXER),
    "deepseek_v4": dense(FOUR, ROUTED, WINDOW, INDEXER, head_dim=32, num_key_value_heads=1, q_lora_rank=32, o_lora_rank=16,
                         o_groups=2, index_topk=4, mlp_layer_types=["hash_moe", "moe", "moe", "moe"],
                         compress_rates={COMPRESSED: 4, SUMMARIZED: BOUNDARY},
                         layer_types=[SUMMARIZED, COMPRESSED, SUMMARIZED, COMPRESSED]),
    "minimax": dense(FOUR, LOCAL, block_size=BOUNDARY),
    "minimax_m2": dense(LOCAL),
    "ernie4_5": dense(),
    "ernie4_5_moe": dense(moe_num_experts=4, moe_k=2, moe_intermediate_size=64, moe_num_shared_experts=1,
                          moe_layer_start_index=1),
    "hunyuan_v1_dense": dense(),
    "hunyuan_v1_moe": dense(num_experts=4, moe_topk=2),
    "hy_v3": dense(EXPERTS),
    "seed_oss": dense(),
    "smollm3": dense(FOUR),
    "olmo": dense(),
    "olmo2": dense(),
    "olmo3": dense(FOUR, WINDOW),
    "olmo_hybrid": dense(GATED_DELTA),
    "olmoe": dense(num_experts=4, **TWO),
    "flex_olmo": dense(num_experts=4, **TWO),
    "granite": dense(logits_scaling=4.0, attention_multiplier=0.3, residual_multiplier=0.5, embedding_multiplier=2.0),
    "granitemoe": dense(LOCAL),
    "granitemoeshared": dense(LOCAL, shared_intermediate_size=64),
    "granitemoehybrid": dense(FOUR, LOCAL, MAMBA, layer_types=ONE_ATTENTION, shared_intermediate_size=64, logits_scaling=4.0),
    "granitemoehybrid+dense": dense(FOUR, MAMBA, layer_types=ONE_ATTENTION, num_local_experts=0, num_experts_per_tok=0,
                                    shared_intermediate_size=128),
    "lfm2": dense(FOUR, layer_types=ONE_FULL, block_multiple_of=32),
    "lfm2_moe": dense(FOUR, EXPERTS, layer_types=ONE_FULL, num_dense_layers=1),
    "lfm3": dense(FOUR, WINDOW),
    "falcon": {key: value for key, value in ONE_WIDTH.items() if key != "num_key_value_heads"},
    "falcon_h1": dense(MAMBA, mamba_d_ssm=64, mamba_n_heads=4),
    "falcon_mamba": STATES,
    "bamba": dense(FOUR, MAMBA, attn_layer_indices=[2]),
    "nemotron": dense(),
    "nemotron_h": dense(NEMOTRON, layers_block_type=["mamba", "mlp", "attention", "mamba"]),
    "nemotron_h+experts": dense(NEMOTRON, ROUTED, layers_block_type=["mamba", "moe", "attention", "moe"],
                                moe_shared_expert_intermediate_size=64, n_group=1, topk_group=1),
    "mamba": STATES,
    "mamba2": {**STATES, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": BOUNDARY},
    "jamba": dense(FOUR, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
                   num_experts=4, mamba_d_state=8, use_mamba_kernels=False),
    "zamba2": {**ONE_WIDTH, "num_hidden_layers": 6, "mamba_d_state": 16, "n_mamba_heads": 8, "mamba_headdim": 16,
               "mamba_ngroups": 1, "chunk_size": BOUNDARY, "num_mem_blocks": 1, "num_key_value_heads": 4,
               "use_mem_rope": True, "layers_block_type": ["mamba", "hybrid", "mamba", "mamba", "hybrid", "mamba"]},
    "recurrent_gemma": {**ONE_WIDTH, "lru_width": 64, "attention_window_size": BOUNDARY},
    "rwkv": {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 3, "context_length": 128,
             "attention_hidden_size": 64, **IDS},
    "cohere": dense(logit_scale=0.25),
    "cohere2": dense(FOUR, WINDOW, logit_scale=0.25),
    "cohere2_moe": dense(FOUR, WINDOW, num_experts=4, **TWO),
    "starcoder2": dense(WINDOW),
    "internlm3": dense(),
    "exaone4": dense(FOUR, WINDOW, sliding_window_pattern=4),
    "exaone_moe": dense(FOUR, WINDOW, EXPERTS, sliding_window_pattern=4),
    "apertus": dense(),
    "arcee": dense(),
    "kimi_linear": latent(LINEAR, q_lora_rank=None, num_experts=4, num_experts_per_token=2, moe_intermediate_size=64,
                          layer_types=["linear_attention"] * 3 + [ALL]),
    "bailing_hybrid": latent(LINEAR, q_lora_rank=None, layer_group_size=4, num_expert_group=2, topk_group=1, num_experts=4,
                             num_experts_per_token=2, moe_intermediate_size=64),
    "afmoe": dense(FOUR, WINDOW, EXPERTS),
    "dots1": dense(SHARED, WINDOW, max_window_layers=1),
    "mimo_v2_flash": dense(FOUR, WINDOW, ROUTED, v_head_dim=16, layer_types=[ALL, NEAR, NEAR, ALL]),
    "longcat_flash": {"num_layers": 2, "ffn_hidden_size": 128, "expert_ffn_hidden_size": 64, "moe_topk": 2,
                      "n_routed_experts": 4, "zero_expert_num": 2,
                      **{key: value for key, value in dense(LATENT, head_dim=8).items() if key != "num_hidden_layers"}},
    "minicpm3": latent(),
    "solar_open": dense(ROUTED),
    "stablelm": dense(),
    "helium": dense(),
    "nanochat": dense(),
    "cwm": dense(FOUR, WINDOW),
    "bitnet": dense(),
    "persimmon": dense(),
    "gpt_neox": dense(),
    "gpt2": {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 3, "n_head": 4, **IDS},
    "opt": {"vocab_size": VOCAB, "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
            "word_embed_proj_dim": 64, "max_position_embeddings": 512, **IDS},
    "bloom": {"vocab_size": VOCAB, "hidden_size": 64, "n_layer": 3, "n_head": 4, **IDS},
    "gptj": {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 3, "n_head": 4, "rotary_dim": 8, **IDS},
    "codegen": {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 3, "n_head": 4, "rotary_dim": 8, **IDS},
    "gpt_neo": {"vocab_size": VOCAB, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "intermediate_size": 128,
                "attention_types": [[["global", "local"], 1]], "window_size": BOUNDARY, **IDS},
    "gpt_bigcode": {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 3, "n_head": 4, **IDS},
    "mpt": {"vocab_size": VOCAB, "d_model": 64, "n_layers": 3, "n_heads": 4, "expansion_ratio": 2, **IDS},
    "dbrx": {"vocab_size": VOCAB, "d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 512,
             "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4}, "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2}},
}  # fmt: skip
