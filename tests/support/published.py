"""The settings of models that people tune, as their owners publish them, and the counts of parameters that they state."""

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, PretrainedConfig

QWEN_PICTURE = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16}
GEMMA = {"vocab_size": 262144, "head_dim": 256, "global_head_dim": 512, "tie_word_embeddings": True}


@dataclass(frozen=True)
class Published:
    """A published model: its config, its billions of parameters, and those that compute one token if it has experts.

    `embedding_counts`: the owner's count of active parameters contains the input embedding.
    """

    kind: str
    settings: dict[str, Any]
    billions: float
    active_billions: float | None = None
    embedding_counts: bool = True

    def config(self) -> PretrainedConfig:
        config: PretrainedConfig = AutoConfig.for_model(self.kind, **self.settings)
        return config


MODELS = {
    # Qwen states 35 and 3. The exact figures are sums of the published sizes of all weights.
    "Qwen3.6-35B-A3B": Published("qwen3_5_moe", {
        "text_config": {"hidden_size": 2048, "num_hidden_layers": 40, "num_experts": 256, "num_experts_per_tok": 8,
                        "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "vocab_size": 248320},
        "vision_config": {**QWEN_PICTURE, "out_hidden_size": 2048}}, 35.1, 3.0, False),
    "gpt-oss-20b": Published("gpt_oss", {"num_hidden_layers": 24, "num_local_experts": 32}, 20.91, 3.61, False),
    "gemma-4-E4B": Published("gemma4", {
        "text_config": {**GEMMA, "hidden_size": 2560, "num_hidden_layers": 42, "intermediate_size": 10240,
                        "num_attention_heads": 8, "num_key_value_heads": 2, "num_kv_shared_layers": 18,
                        "hidden_size_per_layer_input": 256, "sliding_window": 512},
        "vision_config": {}, "audio_config": {}}, 8.0),
    "gemma-4-26B-A4B": Published("gemma4", {
        "text_config": {**GEMMA, "hidden_size": 2816, "num_hidden_layers": 30, "intermediate_size": 2112,
                        "num_attention_heads": 16, "num_key_value_heads": 8, "num_global_key_value_heads": 2,
                        "attention_k_eq_v": True, "enable_moe_block": True, "num_experts": 128, "top_k_experts": 8,
                        "moe_intermediate_size": 704, "hidden_size_per_layer_input": 0, "sliding_window": 1024}},
        25.2, 3.8),
    "gemma-4-31B": Published("gemma4", {
        "text_config": {**GEMMA, "hidden_size": 5376, "num_hidden_layers": 60, "intermediate_size": 21504,
                        "num_attention_heads": 32, "num_key_value_heads": 16, "num_global_key_value_heads": 4,
                        "attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "sliding_window": 1024}}, 30.7),
    "Qwen3-VL-8B": Published("qwen3_vl", {
        "text_config": {"hidden_size": 4096, "num_hidden_layers": 36, "intermediate_size": 12288, "vocab_size": 151936,
                        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
        "vision_config": {**QWEN_PICTURE, "out_hidden_size": 4096}}, 8.77),
    "Llama-4-Scout": Published("llama4", {
        "text_config": {"num_local_experts": 16, "interleave_moe_layer_step": 1},
        "vision_config": {"hidden_size": 1408, "num_hidden_layers": 34, "intermediate_size": 5632, "image_size": 336,
                          "vision_output_dim": 4096, "projector_input_dim": 4096, "projector_output_dim": 4096}},
        109.0, 17.0),
    "DeepSeek-V3": Published("deepseek_v3", {}, 671.0, 37.0, False),
}  # fmt: skip
