"""GGUF files: read back by the gguf package, and in llama.cpp where the package xllamacpp is installed."""

import importlib.util
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize
from support.gguf_models import CHANGES, END, WIDE, make_source, source_of, with_changes

from lorafit.errors import ConfigError, LorafitError, ModelError
from lorafit.exporters.gguf import layout, quantize, write
from lorafit.exporters.gguf.lora import write_lora_gguf
from lorafit.exporters.gguf.runtime import LlamaCpp
from lorafit.exporters.gguf.source import GgufReport, GgufSource, SourceTensor
from lorafit.exporters.gguf.tokenizer import told_name
from lorafit.exporters.gguf.write import plan_gguf, write_gguf
from lorafit.run_folders.adapter import AdapterConfig, lora_names, write_adapter

FAMILIES = list(CHANGES)
# The largest error of a value, as a part of the largest value of its block.
ERRORS = {"F32": 0.0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 0.5 / 127 + 2**-11, "Q4_0": 1 / 8 + 2**-11,
          "Q4_K": 0.15, "Q5_K": 0.08, "Q6_K": 0.04, "Q5_0": 0.07, "Q5_1": 0.07}  # fmt: skip
needs_llama_cpp = pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed")
IDS = [1, 262, 270, 280, 290, 264, 275, 3, 1, 266, 271, 288, 261, 2]


def metadata(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def values_in(path: Path, report: GgufReport) -> dict[str, Any]:
    """Return the file's tensors as float32 in transformers' layout, by their names in the model."""
    stored = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    found = {}
    for tensor in report.tensors:
        one = stored.pop(tensor.name)
        assert one.tensor_type.name == tensor.type
        values = dequantize(one.data, one.tensor_type).reshape(tensor.shape)
        found[tensor.source] = layout.restored(values, tensor.heads, tensor.shift)
    assert not [name for name in stored if not name.startswith("rope")]
    return found


def largest_error(values: Any, found: Any) -> float:
    """Return the largest error as a part of the largest value in its row of at most 256 values."""
    width = min(values.shape[-1], 256)
    blocks, others = values.reshape(-1, width), found.reshape(-1, width)
    return float((np.abs(blocks - others).max(1) / np.maximum(np.abs(blocks).max(1), 1e-9)).max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_every_tensor_is_in_the_file_with_the_error_of_its_type(family: str, kind: str, tmp_path: Path) -> None:
    source = make_source(family, tmp_path / "model")
    report = write_gguf(source, tmp_path / "a.gguf", kind)
    found, types = values_in(report.path, report), {tensor.source: tensor.type for tensor in report.tensors}
    for name, values, _delta in source.tensors():
        limit = 2e-7 if report.architecture.startswith("gemma") else 0.0  # norms have 1 added
        assert largest_error(values, found[name]) <= ERRORS[types[name]] + limit, name
    assert kind.upper() in types.values()
    assert report.bytes == report.path.stat().st_size
    assert {path.name for path in tmp_path.iterdir()} == {"a.gguf", "model"}


def test_metadata_of_the_demo(demo_folder: Path, tmp_path: Path) -> None:
    source = replace(source_of(demo_folder), end_tokens=[2, 0], add_bos=False, chat_template="{{ messages }}")
    write_gguf(source, tmp_path / "a.gguf", "q8_0")
    found = metadata(tmp_path / "a.gguf")
    wanted = {
        "general.architecture": "llama", "general.file_type": 7, "llama.context_length": 8192, "llama.block_count": 30,
        "llama.attention.head_count": 9, "llama.attention.head_count_kv": 3, "llama.rope.freq_base": 100000.0,
        "llama.rope.dimension_count": 64, "llama.vocab_size": 49152, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 0,
        "tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": "{{ messages }}",
    }  # fmt: skip
    assert {name: found.get(name) for name in wanted} == wanted
    assert len(found["tokenizer.ggml.tokens"]) == 49152
    assert "output.weight" not in [tensor.name for tensor in GGUFReader(tmp_path / "a.gguf").tensors]


def test_rows_without_a_token_are_unused_and_spaces_before_texts_are_told(tmp_path: Path) -> None:
    write_gguf(make_source("llama", tmp_path / "model"), tmp_path / "a.gguf", "f16")
    found = metadata(tmp_path / "a.gguf")
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert tokens[-1] == f"[PAD{len(tokens) - 1}]"
    assert kinds[-5:] == [5] * 5
    assert kinds[1] == 3
    assert kinds[4] == 6
    assert found["tokenizer.ggml.add_space_prefix"] is True
    assert found["tokenizer.ggml.eos_token_id"] == END
    assert found["tokenizer.ggml.bos_token_id"] == 1


def test_llama3_and_long_contexts_have_tensors_of_factors(tmp_path: Path) -> None:
    scaled = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    report = write_gguf(make_source("llama", tmp_path / "a", rope_parameters=scaled), tmp_path / "a.gguf", "f32")
    factors = {tensor.name: tensor.data for tensor in GGUFReader(report.path).tensors}["rope_freqs.weight"]
    assert factors[0] == 1.0
    assert factors[-1] == 8.0
    long = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 4.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
    }
    source = make_source("phi3", tmp_path / "b", rope_parameters=long, original_max_position_embeddings=64)
    report = write_gguf(source, tmp_path / "b.gguf", "f32")
    assert {"rope_factors_long.weight", "rope_factors_short.weight"} <= {
        t.name for t in GGUFReader(report.path).tensors
    }
    assert "64" in report.notes[0]


def refusal(source: GgufSource, kind: str = "f16") -> LorafitError:
    with pytest.raises((ModelError, ConfigError)) as caught:
        write_gguf(source, source.tokenizer.parent / "a.gguf", kind)
    assert not list(source.tokenizer.parent.glob("*.gguf"))
    return caught.value


@pytest.mark.parametrize(
    ("family", "change", "found"),
    [
        ("llama", {"model_type": "falcon"}, "falcon"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act: gelu"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope_type: dynamic"),
        ("qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": 16}}, "beta_fast: 16"),
        ("qwen2", {"head_dim": 16}, "head_dim: 16"),
        ("qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5"),
        ("gemma2", {"query_pre_attn_scalar": 256}, "query_pre_attn_scalar: 256"),
        ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping: None"),
        ("gemma3", {"layer_types": ["full_attention"] * 7}, "layer_types"),
        ("phi3", {"num_attention_heads": 8}, "self_attn.o_proj"),
    ],
)  # fmt: skip
def test_a_setting_that_llama_cpp_ignores_is_refused(
    family: str, change: dict[str, Any], found: str, tmp_path: Path
) -> None:
    source = make_source(family, tmp_path / "model")
    if family == "phi3":
        source = with_changes(source, "model.layers.0.self_attn.o_proj.bias", np.zeros(32, np.float32))
        change = {}
    assert found in str(refusal(replace(source, config={**source.config, **change})).found)


def test_other_types_are_refused_with_the_list(tmp_path: Path) -> None:
    source = make_source("llama", tmp_path / "model")
    error = refusal(replace(source, config={**source.config, "model_type": "mixtral"}))
    assert error.found == "mixtral"
    assert all(name in str(error.fix) for name in ("llama", "qwen3", "gemma3", "phi3"))


def test_a_missing_tensor_a_second_one_and_a_wrong_shape_are_refused(tmp_path: Path) -> None:
    source = make_source("qwen2", tmp_path / "model")
    name = "model.layers.1.self_attn.q_proj"
    assert refusal(with_changes(source, f"{name}.bias", None)).found == f"{name}.bias"
    assert "lora" in str(refusal(with_changes(source, f"{name}.lora_A.weight", np.ones((2, 2), np.float32))).found)
    assert "[8, 32]" in str(refusal(with_changes(source, f"{name}.weight", np.ones((8, 32), np.float32))).found)


def test_numbers_that_a_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    source = make_source("llama", tmp_path / "model")
    name = "model.layers.0.mlp.up_proj.weight"
    weight = {own: values for own, values, _delta in source.tensors()}[name].copy()
    weight[3, 3] = 1e6
    large = with_changes(source, name, weight)
    assert "F16: 1000000.0" in str(refusal(large).found)
    write_gguf(large, tmp_path / "b.gguf", "bf16").path.unlink()
    weight[3, 3] = np.nan
    assert "nan" in str(refusal(with_changes(source, name, weight), "q8_0").found)


def test_tokenizers_that_llama_cpp_does_not_know_are_refused(demo_folder: Path, tmp_path: Path) -> None:
    source = make_source("llama", tmp_path / "model", vocab_size=49152)
    assert plan_gguf(replace(source, tokenizer=demo_folder), "f16").tokenizer.pre == "smollm"
    content = json.loads((demo_folder / "tokenizer.json").read_text("utf-8"))
    content["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    assert "sha256" in str(refusal(source).found)
    few = make_source("llama", tmp_path / "few", vocab_size=100)
    assert "> 100" in str(refusal(few).found)
    assert "one to three" in refusal(replace(make_source("llama", tmp_path / "endless"), end_tokens=[])).what


@pytest.mark.parametrize("prefix", ["", "model.language_model.", "language_model.model.", "model.text_model."])
def test_the_text_decoder_of_a_wrapper_has_the_names_of_a_plain_one(prefix: str) -> None:
    assert layout.plain_name(f"{prefix or 'model.'}layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
    head = "language_model.lm_head.weight" if prefix.startswith("language") else "lm_head.weight"
    assert layout.plain_name(head) == "lm_head.weight"


def test_only_a_phi3_tokenizer_gets_the_name_by_which_llama_cpp_strips_spaces() -> None:
    assert told_name("my-phi3-notes", False) == "my-Phi 3-notes"
    assert told_name("finetuned", True) == "finetuned (Phi-3)"
    assert told_name("Phi-3-mini", True) == "Phi-3-mini"


def test_k_quants_need_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source("llama", tmp_path / "model")
    monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda name: None)
    error = refusal(source, "q4_k_m")
    assert "xllamacpp" in error.what
    assert "q8_0" in str(error.fix)
    assert refusal(source, "q3_k").found == "q3_k"


def test_memory_is_a_tensor_and_its_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "BLOCK_VALUES", 1 << 16)
    source = make_source("llama", tmp_path / "model", hidden_size=256, intermediate_size=8192, num_hidden_layers=4)
    random = np.random.default_rng(0)
    lazy = replace(
        source,
        tensors=lambda: (SourceTensor(n, random.standard_normal(s, np.float32)) for n, s in source.shapes.items()),
    )
    largest = 4 * max(int(np.prod(shape)) for shape in source.shapes.values())
    write_gguf(lazy, tmp_path / "warm.gguf", "q8_0")
    tracemalloc.start()
    write_gguf(lazy, tmp_path / "a.gguf", "q8_0")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * largest


@needs_llama_cpp
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_what_transformers_does(family: str, tmp_path: Path) -> None:
    source = make_source(family, tmp_path / "model", head_dim=64, **WIDE, query_pre_attn_scalar=64)
    wanted = live_logits(tmp_path / "model")
    limits = {"f32": 5e-3, "f16": 0.1, "q8_0": 2.0, "q6_k": 6.0, "q4_k_m": 40.0}
    for kind, limit in limits.items():
        report = write_gguf(source, tmp_path / f"{kind}.gguf", kind)
        with LlamaCpp(report.path, 64) as model:
            assert np.abs(model.logits(IDS) - wanted).max() < limit, kind
            assert model.ends(END)


def test_a_window_that_llama_cpp_does_not_have_is_told(tmp_path: Path) -> None:
    report = write_gguf(make_source("mistral", tmp_path / "model", sliding_window=8), tmp_path / "a.gguf", "f16")
    assert "beyond 8 tokens" in report.notes[0]


@needs_llama_cpp
def test_query_and_key_that_are_not_reordered_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source("llama", tmp_path / "model", head_dim=64, **WIDE)
    monkeypatch.setattr(layout, "PERMUTED", {})
    report = write_gguf(source, tmp_path / "a.gguf", "f32")
    with LlamaCpp(report.path, 64) as model:
        assert np.abs(model.logits(IDS) - live_logits(tmp_path / "model")).max() > 0.5


@needs_llama_cpp
def test_llama_cpp_splits_texts_as_the_tokenizer_does(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    report = write_gguf(make_source("llama", tmp_path / "model"), tmp_path / "a.gguf", "f16")
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    with LlamaCpp(report.path, 64) as model:
        for text in ("the law", "a  theatre", "<s>the law<|end|>\nin  the", "法律 the", "", "\n"):
            assert model.tokenize(text) == tokenizer.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_alone_has_the_scale_of_each_layer(rslora: bool, tmp_path: Path) -> None:
    source, deltas = with_adapter(tmp_path, rslora)
    report = write_lora_gguf(tmp_path / "adapter", source.config, "base", tmp_path / "lora.gguf")
    alpha = metadata(report.path)["adapter.lora.alpha"]
    found = {tensor.name: tensor.data for tensor in GGUFReader(report.path).tensors}
    heads = {"q_proj": ("attn_q", 4), "down_proj": ("ffn_down", 0)}
    for module, delta in deltas.items():
        name, count = heads[module.split(".")[-1]]
        a, b = (found[f"blk.{module.split('.')[2]}.{name}.weight.lora_{part}"] for part in "ab")
        ours = layout.restored(alpha / len(a) * (b @ a), count, 0.0)
        assert np.allclose(ours, delta, atol=1e-6)


@needs_llama_cpp
def test_base_and_adapter_in_llama_cpp_are_the_merged_model(tmp_path: Path) -> None:
    source, deltas = with_adapter(tmp_path, rslora=True)
    base = write_gguf(source, tmp_path / "base.gguf", "f32")
    lora = write_lora_gguf(tmp_path / "adapter", source.config, "base", tmp_path / "lora.gguf")
    weights = {
        name: values + deltas.get(name.removesuffix(".weight"), 0.0) for name, values, _delta in source.tensors()
    }
    merged = replace(source, tensors=lambda: (SourceTensor(*pair) for pair in weights.items()))
    whole = write_gguf(merged, tmp_path / "merged.gguf", "f32")
    with LlamaCpp(base.path, 64, lora=lora.path) as model, LlamaCpp(whole.path, 64) as other:
        assert np.abs(model.logits(IDS) - other.logits(IDS)).max() < 2e-3


def live_logits(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()


def with_adapter(folder: Path, rslora: bool) -> tuple[GgufSource, dict[str, Any]]:
    """Write a base and an adapter with two ranks and alphas, and return the base and the deltas by layer."""
    source = make_source("llama", folder / "model")
    modules = [f"model.layers.{layer}.{part}" for layer in range(2) for part in ("self_attn.q_proj", "mlp.down_proj")]
    config = AdapterConfig("base", 4, 6.0, 0.0, ["q_proj", "down_proj"], rslora, {"down_proj": 2}, {"down_proj": 5.0})
    random, tensors, deltas = np.random.default_rng(0), {}, {}
    for module in modules:
        outputs, inputs = source.shapes[f"{module}.weight"]
        a, b = (
            random.standard_normal(shape, np.float32)
            for shape in ((config.rank_of(module), inputs), (outputs, config.rank_of(module)))
        )
        tensors |= dict(zip(lora_names(module), (a, b), strict=True))
        deltas[module] = np.float32(config.scale_of(module)) * (b @ a)
    write_adapter(folder / "adapter", config, tensors)
    return source, deltas
