"""Adapters are exchanged with `peft` in both directions with equal logits; anything else raises an AdapterError."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from lorafit.errors import AdapterError
from lorafit.run_folders.adapter import (
    AdapterConfig,
    ChatSettings,
    lora_names,
    parse_lora_name,
    read_adapter,
    read_adapter_config,
    read_chat_settings,
    write_adapter,
    write_chat_settings,
)
from lorafit.run_folders.peft_form import BaseFacts, target_modules, target_names

Tensors = dict[str, np.ndarray]
SHORT = ["q_proj", "v_proj", "down_proj"]
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def linears(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}


def modules_of(model: torch.nn.Module, short: list[str]) -> list[str]:
    return [name for name in linears(model) if name.rpartition(".")[2] in short]


def random_adapter(model: torch.nn.Module, modules: list[str], r: int) -> Tensors:
    rng = np.random.default_rng(1)
    tensors: Tensors = {}
    for module in modules:
        out_features, in_features = linears(model)[module].weight.shape
        a, b = lora_names(module)
        tensors[a] = rng.normal(size=(r, in_features)).astype(np.float32)
        tensors[b] = rng.normal(size=(out_features, r)).astype(np.float32)
    return tensors


def logits_by_hand(tensors: Tensors, scale: float) -> torch.Tensor:
    """Return the logits of a base model whose weights are W + scale * B @ A."""
    model = tiny_llama()
    for module, linear in linears(model).items():
        a, b = lora_names(module)
        if a in tensors:
            linear.weight.data += scale * torch.from_numpy(tensors[b]) @ torch.from_numpy(tensors[a])
    with torch.no_grad():
        return model(IDS).logits


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a valid adapter."""
    model = tiny_llama()
    write_adapter(
        tmp_path, AdapterConfig("base", 4, 8.0, 0.1, SHORT), random_adapter(model, modules_of(model, SHORT), 4)
    )
    return tmp_path


def test_a_written_adapter_is_read_back_exactly(tmp_path: Path) -> None:
    model = tiny_llama()
    config = AdapterConfig("本地/模型", 4, 6.5, 0.1, sorted(SHORT), use_rslora=True)
    tensors = random_adapter(model, modules_of(model, SHORT), 4)
    write_adapter(tmp_path / "new" / "folder", config, tensors)
    read_config, read = read_adapter(tmp_path / "new" / "folder")
    assert read_config == config
    assert read.keys() == tensors.keys()
    assert all(np.array_equal(read[name], tensors[name]) and read[name].dtype == np.float32 for name in tensors)


def test_equal_weights_give_equal_bytes_in_whatever_order_and_layout(folder: Path, tmp_path: Path) -> None:
    config, tensors = read_adapter(folder)
    write_adapter(tmp_path / "b", config, {name: np.asfortranarray(tensors[name]) for name in reversed(tensors)})
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "b" / file).read_bytes() == (folder / file).read_bytes()


@pytest.mark.parametrize(("short", "use_rslora"), [(SHORT, False), (SHORT, True), (["lm_head", "q_proj"], False)])
def test_peft_loads_a_written_adapter_and_computes_w_plus_scale_b_a(
    tmp_path: Path, short: list[str], use_rslora: bool
) -> None:
    model = tiny_llama()
    config = AdapterConfig("tiny", 4, 6.0, 0.1, short, use_rslora)
    tensors = random_adapter(model, modules_of(model, short), 4)
    write_adapter(tmp_path, config, tensors)
    assert config.scale_of("q_proj") == (6.0 / 2.0 if use_rslora else 6.0 / 4.0)
    tuned = PeftModel.from_pretrained(model, str(tmp_path)).eval()
    wrapped = {name for name, m in tuned.base_model.model.named_modules() if hasattr(m, "lora_A")}
    assert wrapped == set(modules_of(tiny_llama(), short))
    with torch.no_grad():
        logits = tuned(IDS).logits
        with tuned.disable_adapter():
            base = tuned(IDS).logits
    reference = logits_by_hand(tensors, config.scale_of("q_proj"))
    assert (logits - reference).norm() < 1e-6 * reference.norm()
    assert (base - tiny_llama()(IDS).logits).abs().max() < 1e-6
    assert (base - reference).abs().max() > 0.1


@pytest.mark.parametrize("use_rslora", [False, True])
def test_an_adapter_saved_by_peft_is_read_back(tmp_path: Path, use_rslora: bool) -> None:
    lora = LoraConfig(
        r=4, lora_alpha=10, lora_dropout=0.05, target_modules=SHORT, use_rslora=use_rslora, init_lora_weights=False, task_type="CAUSAL_LM"
    )  # fmt: skip
    tuned = get_peft_model(tiny_llama(), lora).eval()
    tuned.save_pretrained(str(tmp_path))
    config, tensors = read_adapter(tmp_path)
    assert (config.r, config.alpha, config.dropout, config.target_modules) == (4, 10, 0.05, sorted(SHORT))
    assert config.scale_of("q_proj") == pytest.approx(10 / math.sqrt(4) if use_rslora else 10 / 4)
    assert sum(t.size for t in tensors.values()) == tuned.get_nb_trainable_parameters()[0]
    with torch.no_grad():
        reference = logits_by_hand(tensors, config.scale_of("q_proj"))
        assert (tuned(IDS).logits - reference).norm() < 1e-6 * reference.norm()
    assert read_chat_settings(tmp_path) == ChatSettings()


def test_targets_given_to_peft_by_pattern_or_layer_are_read_as_full_names(tmp_path: Path) -> None:
    expected = "model.layers.1.self_attn.q_proj"
    for number, choice in enumerate(
        [{"target_modules": r".*\.1\..*q_proj"}, {"target_modules": ["q_proj"], "layers_to_transform": [1]}]
    ):
        tuned = get_peft_model(tiny_llama(), LoraConfig(r=2, **choice))
        tuned.save_pretrained(str(tmp_path / str(number)))
        assert read_adapter(tmp_path / str(number))[0].target_modules == [expected]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_in_half_precision_are_read_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    tuned = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=SHORT, init_lora_weights=False)).to(dtype)
    tuned.save_pretrained(str(tmp_path))
    tensors = read_adapter(tmp_path)[1]
    state = {name.replace(".default", ""): value for name, value in tuned.state_dict().items() if "lora_" in name}
    assert state.keys() == tensors.keys()
    assert all(np.array_equal(tensors[name], state[name].float().numpy()) for name in state)


def test_names_of_tensors_and_their_inverse() -> None:
    a, b = lora_names("model.layers.0.self_attn.q_proj")
    assert a == "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert parse_lora_name(a) == ("model.layers.0.self_attn.q_proj", "A")
    assert parse_lora_name(b) == ("model.layers.0.self_attn.q_proj", "B")
    for other in ("lm_head.weight", a + "x", "base_model.model.m.lora_embedding_A", "base_model.model.m.lora_C.weight"):
        assert parse_lora_name(other) is None


def test_targets_are_short_names_only_where_they_select_exactly_the_trained_modules() -> None:
    every = [name for name, _module in tiny_llama().named_modules()]
    both = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
    assert target_names([*reversed(both), "lm_head"], every) == ["lm_head", "q_proj"]
    assert target_names(both[:1], every) == both[:1]
    assert target_names(both, [*every, "vision.q_proj"]) == both


def test_targets_are_an_expression_where_a_full_name_is_the_end_of_another(tmp_path: Path) -> None:
    trained = [f"layers.{n}.mlp.{kind}" for n in (0, 1, 10) for kind in ("up", "down")] + ["layers.1.q"]
    every = [*trained, "vision.layers.0.mlp.up", "layers.2.mlp.up", "layers.0.q"]
    expression = target_modules(trained, every)
    assert isinstance(expression, str)
    assert [name for name in every if re.fullmatch(expression, name)] == trained
    assert target_modules(trained, every[:-3]) == ["down", "q", "up"]
    tensors = {name: np.ones((2, 2), np.float32) for module in trained for name in lora_names(module)}
    write_adapter(tmp_path, AdapterConfig("tiny", 2, 2.0, 0.0, []), tensors, BaseFacts("llama", every, {}))
    assert json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))["target_modules"] == expression
    assert read_adapter(tmp_path)[0].target_modules == sorted(trained)


def test_full_names_make_peft_attach_to_those_modules_alone(tmp_path: Path) -> None:
    model = tiny_llama()
    trained = ["model.layers.1.mlp.up_proj"]
    names = target_names(trained, (name for name, _module in model.named_modules()))
    write_adapter(tmp_path, AdapterConfig("tiny", 2, 2.0, 0.0, names), random_adapter(model, trained, 2))
    tuned = PeftModel.from_pretrained(model, str(tmp_path))
    assert [name for name, m in tuned.base_model.model.named_modules() if hasattr(m, "lora_A")] == trained


@pytest.mark.parametrize(
    "changes",
    [
        {"use_dora": True}, {"peft_type": "IA3"}, {"peft_type": None}, {"modules_to_save": ["lm_head"]}, {"lora_bias": True}, {"init_lora_weights": "pissa"},
        {"trainable_token_indices": [1]}, {"target_parameters": ["experts.w"]}, {"layer_replication": [[0, 2]]},
    ],
)  # fmt: skip
def test_an_adapter_type_that_lorafit_cannot_compute_is_refused_by_name(folder: Path, changes: dict[str, Any]) -> None:
    edit(folder, **changes)
    with pytest.raises(AdapterError, match="does not support this kind of adapter") as raised:
        read_adapter(folder)
    assert next(iter(changes)) in (raised.value.found or "")


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 0},
        {"r": "4"},
        {"r": True},
        {"r": 4.5},
        {"lora_alpha": None},
        {"lora_alpha": -1},
        {"lora_dropout": "x"},
        {"r": 5},
        {"rank_pattern": {"q_proj": 8}},
        {"rank_pattern": {"q_proj": "4"}},
        {"rank_pattern": ["q_proj"]},
        {"alpha_pattern": {"q_proj": 0}},
        {"alpha_pattern": {"(q_proj": 8}},
        {"alpha_pattern": {"(?i)q_proj": 8}},
    ],
)
def test_invalid_numbers_raise_an_adapter_error(folder: Path, changes: dict[str, Any]) -> None:
    edit(folder, **changes)
    with pytest.raises(AdapterError, match="damaged"):
        read_adapter(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000])
def test_a_broken_config_raises_an_adapter_error(folder: Path, text: str) -> None:
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(AdapterError, match="damaged"):
        read_adapter_config(folder)


@pytest.mark.parametrize("size", [0, 5, 200, -1])
def test_truncated_weights_raise_an_adapter_error(folder: Path, size: int) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(AdapterError, match="damaged") as raised:
        read_adapter(folder)
    assert raised.value.where == str(path)


def test_missing_files_raise_an_adapter_error_and_a_pickle_is_never_opened(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"adapter_config\.json is missing"):
        read_adapter(tmp_path / "absent")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="a pickle"):
        read_adapter(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(AdapterError, match="weights are missing"):
        read_adapter(folder)


def test_tensors_that_make_no_pairs_raise_an_adapter_error(folder: Path) -> None:
    config, tensors = read_adapter(folder)
    first = next(iter(tensors))
    strange = {"base_model.model.lm_head.lora_C": np.zeros((2, 2), np.float32)}
    halves = {name: t for name, t in tensors.items() if name != first}
    turned = tensors | {first: np.ascontiguousarray(tensors[first].T)}
    for bad, words in (
        (tensors | strange, "neither"),
        (halves, "has no matching lora_A or lora_B"),
        (turned, "has shape"),
        ({}, "no tensor"),
    ):
        write_adapter(folder, config, bad)
        with pytest.raises(AdapterError, match=words):
            read_adapter(folder)


def test_chat_settings_are_read_back_and_absent_or_damaged_ones_get_their_default(tmp_path: Path) -> None:
    settings = ChatSettings("你是一名律师。", "1 Jan 2026", "demo", "llama-lora-20260101_000000")
    write_chat_settings(tmp_path, settings)
    assert read_chat_settings(tmp_path) == settings
    assert read_chat_settings(tmp_path / "absent") == ChatSettings(None, "26 Jul 2024", None, None)
    for text, expected in (
        ("", ChatSettings()),
        ("[1]", ChatSettings()),
        ('{"date_string": 7, "run": "r", "new": 1}', ChatSettings(run="r")),
    ):
        (tmp_path / "lorafit.json").write_text(text)
        assert read_chat_settings(tmp_path) == expected
