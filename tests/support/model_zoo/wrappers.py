"""Settings of tiny multimodal models by family: a text model with a vision tower, saved as on the hub.

A key is a model type, with `+` and a word if a type has several rows. The towers are small and their inputs are unused.
"""

from support.model_zoo.shapes import IDS, SHARED, TEXT, VOCAB, Settings, dense, latent

TOWER: Settings = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
DEEP_TOWER: Settings = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
QWEN_TOWER: Settings = {**DEEP_TOWER, "num_position_embeddings": 16, "patch_size": 14}
QWEN_IDS: Settings = {
    "image_token_id": 480, "video_token_id": 481, "vision_start_token_id": 482, "vision_end_token_id": 483,
}  # fmt: skip
IMAGE: Settings = {"image_token_id": 480}
IMAGE_INDEX: Settings = {"image_token_index": 480}
GEMMA_IDS: Settings = {**IMAGE_INDEX, "boi_token_index": 481, "eoi_token_index": 482}
GEMMA_4_IDS: Settings = {
    **IMAGE, "boi_token_id": 481, "eoi_token_id": 482, "audio_token_id": 483, "boa_token_id": 484, "video_token_id": 485,
}  # fmt: skip


def text_of(name: str) -> Settings:
    """Return the settings of the text model `name` with its model type."""
    return {**TEXT[name], "model_type": name.partition("+")[0]}


def rope(sections: list[int], **more: object) -> Settings:
    """Return the settings of a text model whose rotary angles have `sections` for time, height and width."""
    return dense(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections, **more})


WRAPPERS: dict[str, Settings] = {
    "gemma3": {"text_config": text_of("gemma3_text"), "vision_config": TOWER, "mm_tokens_per_image": 4, **GEMMA_IDS},
    "gemma3n": {
        "text_config": text_of("gemma3n_text"),
        "audio_config": {"hidden_size": 32, "conf_num_hidden_layers": 2, "conf_num_attention_heads": 2,
                         "sscp_conv_channel_size": [8, 4], "input_feat_size": 16, "vocab_offset": 500, "vocab_size": 8},
        "vision_config": {"vocab_offset": 490, "vocab_size": 8}},
    "gemma4": {"text_config": text_of("gemma4_text"),
               "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                                 "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}, **GEMMA_4_IDS},
    "mistral3": {"text_config": text_of("ministral3"),
                 "vision_config": {**TOWER, "model_type": "pixtral", "head_dim": 16}, **IMAGE_INDEX},
    "mistral3+mistral": {"text_config": {**text_of("mistral"), "sliding_window": None},
                         "vision_config": {**TOWER, "model_type": "pixtral", "head_dim": 16}, **IMAGE_INDEX},
    "mistral3+mistral4": {"text_config": {**latent(SHARED, n_group=1, topk_group=1), "model_type": "mistral4"},
                          "vision_config": {**TOWER, "model_type": "pixtral", "head_dim": 16}, **IMAGE_INDEX},
    "llama4": {"text_config": text_of("llama4_text"),
               "vision_config": {**TOWER, "num_channels": 3, "vision_output_dim": 32, "projector_input_dim": 32,
                                 "projector_output_dim": 32}, **GEMMA_IDS},
    "qwen3_5": {"text_config": text_of("qwen3_5_text"), "vision_config": QWEN_TOWER, **QWEN_IDS},
    "qwen3_5_moe": {"text_config": text_of("qwen3_5_moe_text"), "vision_config": QWEN_TOWER, **QWEN_IDS},
    "qwen2_vl": {"text_config": rope([4, 2, 2]),
                 "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2}, **QWEN_IDS},
    "qwen2_5_vl": {"text_config": rope([4, 2, 2]), "vision_config": {**DEEP_TOWER, "fullatt_block_indexes": [1]}, **QWEN_IDS},
    "qwen3_vl": {"text_config": rope([4, 2, 2], mrope_interleaved=True),
                 "vision_config": {**QWEN_TOWER, "deepstack_visual_indexes": [0]}, **QWEN_IDS},
    "qwen3_vl_moe": {"text_config": {**rope([4, 2, 2], mrope_interleaved=True), "num_experts": 4, "num_experts_per_tok": 2,
                                     "moe_intermediate_size": 64},
                     "vision_config": {**QWEN_TOWER, "deepstack_visual_indexes": [0]}, **QWEN_IDS},
    "lfm2_vl": {"text_config": text_of("lfm2"), "projector_hidden_size": 64, **IMAGE,
                "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                                  "num_attention_heads": 2, "num_patches": 16}},
    "internvl": {"text_config": text_of("qwen3"),
                 "vision_config": {**TOWER, "image_size": [28, 28], "patch_size": [14, 14]}, **IMAGE},
    "smolvlm": {"text_config": text_of("llama"), "vision_config": TOWER, **IMAGE},
    "idefics3": {"text_config": text_of("llama"), "vision_config": TOWER, **IMAGE},
    "llava": {"text_config": text_of("llama"), "vision_config": {**TOWER, "model_type": "clip_vision_model"}, **IMAGE_INDEX},
    "paligemma": {"text_config": text_of("gemma"), "vision_config": {**TOWER, "model_type": "siglip_vision_model"},
                  "projection_dim": 64, **IMAGE_INDEX},
    "glm4v": {"text_config": rope([2, 1, 1], partial_rotary_factor=0.5),
              "vision_config": {**DEEP_TOWER, "image_size": 28, "patch_size": 14},
              **IMAGE, "video_token_id": 481},
    "mllama": {
        "text_config": {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
                        "num_attention_heads": 4, "num_key_value_heads": 2, "cross_attention_layers": [1], **IDS,
                        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_global_layers": 1,
                          "attention_heads": 2, "vision_output_dim": 64, "image_size": 28, "patch_size": 14,
                          "intermediate_layers_indices": [0]}, **IMAGE_INDEX},
    "phi4_multimodal": {
        **dense(),
        "vision_config": {**TOWER, "crop_size": 28},
        "audio_config": {"hidden_size": 32, "intermediate_size": 64, "num_blocks": 2, "num_attention_heads": 2,
                         "ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 32}},
}  # fmt: skip
