"""The positions of a model are read from its config and its weights' header: a table, rotary positions, or none."""

from typing import Any

import pytest

from lorafit.models.positions import Positions, positions_of

TABLES = [
    ({"model_type": "gpt2", "n_positions": 64}, "transformer.wpe.weight", 64, 64),
    ({"model_type": "opt", "max_position_embeddings": 64}, "model.decoder.embed_positions.weight", 66, 64),
    ({"model_type": "opt"}, "model.decoder.embed_positions.weight", 66, 64),
    ({"model_type": "bert", "max_position_embeddings": 64}, "bert.embeddings.position_embeddings.weight", 64, 64),
    ({"model_type": "openai-gpt"}, "transformer.positions_embed.weight", 64, 64),
]


@pytest.mark.parametrize(("config", "name", "rows", "limit"), TABLES)
def test_a_table_of_positions_is_a_hard_limit(config: dict[str, Any], name: str, rows: int, limit: int) -> None:
    tensors = [("model.embed_tokens.weight", (100, 8)), (name, (rows, 8))]
    assert positions_of(config, tensors, 8) == Positions(limit, "table")


def test_the_table_of_a_vision_tower_is_not_that_of_the_decoder() -> None:
    text = {"model_type": "qwen2", "max_position_embeddings": 4096, "rope_theta": 1e4}
    tensors = [("vision_tower.embeddings.position_embedding.weight", (576, 8)), ("encoder.wpe.weight", (576, 8))]
    assert positions_of(text, tensors, 8) == Positions(4096, "rope")


def test_a_table_that_transformers_computes_is_a_hard_limit_too() -> None:
    assert positions_of({"model_type": "gptj", "n_positions": 64, "rotary_dim": 8}, [], 8) == Positions(64, "table")


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({"model_type": "llama"}, ""),
        ({"rope_theta": 1e4}, ""),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, ""),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}}, ""),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "linear"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "yarn"),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {}}}, "dynamic"),
    ],
)
def test_rotary_positions_have_a_number_and_perhaps_a_scaling(config: dict[str, Any], scaling: str) -> None:
    assert positions_of({"max_position_embeddings": 64, **config}, [], 8) == Positions(64, "rope", scaling)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bloom"},
        {"model_type": "falcon", "alibi": True, "max_position_embeddings": 64, "rope_theta": 1e4},
        {"model_type": "granitemoehybrid", "position_embedding_type": "nope", "max_position_embeddings": 64, "rope_theta": 1},
        {"model_type": "mamba"},
        {"model_type": "jamba", "max_position_embeddings": 64},
    ],
)  # fmt: skip
def test_models_without_a_number_of_positions_have_no_limit(config: dict[str, Any]) -> None:
    assert positions_of(config, [("backbone.embeddings.weight", (100, 8))], 8) is None
