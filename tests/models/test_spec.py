"""A model's shape is read from safetensors headers only, and an incomplete folder is an error with a fix."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorafit.errors import ModelError
from lorafit.models.spec import read_spec

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
}
LAYER = {"self_attn.q_proj": (8, 8), "self_attn.k_proj": (4, 8), "mlp.down_proj": (8, 16)}


def tensors(prefix: str = "model.") -> dict[str, np.ndarray[Any, Any]]:
    """Return the weights of a small decoder: embedding, LM head, and two layers with a norm each."""
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}embed_tokens.weight": (32, 8), "lm_head.weight": (32, 8)}
    for layer in range(2):
        shapes[f"{prefix}layers.{layer}.input_layernorm.weight"] = (8,)
        shapes |= {f"{prefix}layers.{layer}.{name}.weight": shape for name, shape in LAYER.items()}
    return {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The complete folder of a small model."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer.json").write_text("{}")
    save_file(tensors(), tmp_path / "model.safetensors")
    return tmp_path


def test_shape_bytes_and_linears_are_those_of_config_and_tensors(folder: Path) -> None:
    spec = read_spec(folder)
    numbers = sum(t.size for t in tensors().values())
    assert (spec.model_type, spec.layers, spec.hidden, spec.intermediate) == ("llama", 2, 8, 16)
    assert (spec.heads, spec.kv_heads, spec.head_dim, spec.vocab, spec.tied) == (4, 2, 2, 32, False)
    assert (spec.parameters, spec.weight_bytes) == (numbers, 2 * numbers)
    assert {(f"model.layers.{i}.{n}", s[1], s[0]) for i in range(2) for n, s in LAYER.items()} == {
        linear[:3] for linear in spec.linears
    }


def test_shards_are_summed_by_their_index(folder: Path) -> None:
    whole = read_spec(folder)
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i, half in enumerate((list(tensors().items())[:4], list(tensors().items())[4:]), start=1):
        save_file(dict(half), folder / f"model-{i}.safetensors")
        weight_map |= {name: f"model-{i}.safetensors" for name, _tensor in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sharded = read_spec(folder)
    assert (sharded.parameters, sharded.weight_bytes) == (whole.parameters, whole.weight_bytes)
    assert set(sharded.linears) == set(whole.linears)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-2\.safetensors"):
        read_spec(folder)


def test_a_nested_text_config_is_read_and_other_towers_take_no_adapter(folder: Path) -> None:
    text = {k: v for k, v in CONFIG.items() if k != "model_type"}
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    tower = {"vision_tower.encoder.layers.0.self_attn.q_proj.weight": np.zeros((8, 8), np.float16)}
    save_file(tensors("language_model.model.") | tower, folder / "model.safetensors")
    spec = read_spec(folder)
    assert (spec.model_type, spec.layers, len(spec.linears)) == ("gemma3", 2, 6)
    assert all(linear.name.startswith("language_model.") for linear in spec.linears)


def test_fused_experts_and_their_router_are_no_linears(folder: Path) -> None:
    experts = {
        "model.layers.0.mlp.gate.weight": np.zeros((4, 8), np.float16),
        "model.layers.0.mlp.experts.0.up_proj.weight": np.zeros((16, 8), np.float16),
    }
    save_file(tensors() | experts, folder / "model.safetensors")
    assert len(read_spec(folder).linears) == 6


def test_the_demo_model_agrees_with_its_published_size(demo_folder: Path) -> None:
    spec = read_spec(demo_folder)
    assert (spec.parameters, spec.weight_bytes) == (134_515_008, 269_030_016)
    assert (spec.layers, spec.hidden, spec.heads, spec.kv_heads, spec.head_dim) == (30, 576, 9, 3, 64)
    assert spec.tied
    assert len(spec.linears) == 30 * 7


def delete(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def an_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


def config_without_hidden_size(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({k: v for k, v in CONFIG.items() if k != "hidden_size"}))


def cut_in_the_tensors(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def cut_in_the_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:50])


def empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def not_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.example/spec/v1\noid sha256:0\n")


def broken_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "words", "remedy"),
    [
        (shutil.rmtree, "Model folder not found", "demo"),
        (delete("config.json"), "no config.json", "Give the folder"),
        (an_adapter, "adapter_config.json", "--init_adapter"),
        (broken_config, "cannot be read as JSON", "download"),
        (config_without_hidden_size, "hidden_size", "config.json"),
        (delete("model.safetensors"), "no safetensors weights", "Download"),
        (only_pickles, "pytorch_model.bin", "save_pretrained"),
        (delete("tokenizer.json"), "no tokenizer", "tokenizer.json"),
        (cut_in_the_tensors, "incomplete", "download"),
        (cut_in_the_header, "incomplete", "download"),
        (empty_weights, "incomplete", "download"),
        (not_safetensors, "model.safetensors", "git lfs pull"),
        (broken_index, "index", "download"),
    ],
)
def test_what_is_missing_or_broken_is_named_with_its_remedy(
    folder: Path, damage: Callable[[Path], None], words: str, remedy: str
) -> None:
    damage(folder)
    with pytest.raises(ModelError) as caught:
        read_spec(folder)
    assert words in str(caught.value)
    assert str(folder) in str(caught.value.where)
    assert remedy in str(caught.value.fix)


def test_a_file_given_as_a_folder_is_told_so(folder: Path) -> None:
    with pytest.raises(ModelError, match="this is a file"):
        read_spec(folder / "config.json")


@pytest.mark.parametrize("entry", ["text_config", "llm_config", "language_config"])
def test_the_settings_of_a_text_decoder_are_found_in_any_wrapper(folder: Path, entry: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "wrapped", "vision_config": {}, entry: CONFIG}))
    tower = {"vision_tower.blocks.0.attn.qkv.weight": np.zeros((8, 8), np.float16)}
    save_file(tensors("language_model.") | tower, folder / "model.safetensors")
    spec = read_spec(folder)
    assert (spec.layers, spec.heads, len(spec.linears), spec.other_parameters) == (2, 4, 6, 64)


def test_a_speaking_model_is_read_as_its_thinker(folder: Path) -> None:
    thinker = {"text_config": CONFIG, "audio_config": {"d_model": 4}}
    config = {"model_type": "omni", "thinker_config": thinker, "talker_config": {"text_config": {"hidden_size": 4}}}
    (folder / "config.json").write_text(json.dumps(config))
    talker = {f"talker.{name}": tensor for name, tensor in tensors().items()}
    save_file(tensors("thinker.model.") | talker, folder / "model.safetensors")
    spec = read_spec(folder)
    assert {linear.name.partition(".")[0] for linear in spec.linears} == {"thinker"}
    assert spec.parameters == spec.other_parameters


def test_layers_that_predict_several_tokens_are_not_loaded(folder: Path) -> None:
    extra = {
        f"{start}.mlp.down_proj.weight": np.zeros((8, 16), np.float16) for start in ("model.layers.2", "mtp.layers.0")
    }
    save_file(tensors() | extra, folder / "model.safetensors")
    spec = read_spec(folder)
    assert (len(spec.linears), spec.other_parameters) == (6, 2 * 8 * 16)


def test_what_a_config_leaves_out_is_the_default_of_its_class(folder: Path) -> None:
    left = ("num_attention_heads", "num_key_value_heads", "vocab_size")
    config = {k: v for k, v in CONFIG.items() if k not in left} | {"model_type": "gemma3_text"}
    (folder / "config.json").write_text(json.dumps(config))
    spec = read_spec(folder)
    assert (spec.heads, spec.kv_heads, spec.head_dim, spec.vocab) == (8, 4, 256, 262_208)


def test_weights_in_mxfp4_are_counted_as_they_are_unpacked(folder: Path) -> None:
    packed = {
        "model.layers.0.mlp.experts.gate_up_proj_blocks": np.zeros((4, 32, 2, 16), np.uint8),
        "model.layers.0.mlp.experts.gate_up_proj_scales": np.zeros((4, 32, 2), np.uint8),
    }
    before = read_spec(folder).parameters
    save_file(tensors() | packed, folder / "model.safetensors")
    spec = read_spec(folder)
    assert (spec.expert_weights, spec.parameters - before) == (4 * 32 * 64, 4 * 32 * 64)
