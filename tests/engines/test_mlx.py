"""Tests of the MLX engine alone: errors, memory, quantized bases, mlx_lm's pitfalls, and adapters that mlx_lm loads."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from safetensors.numpy import save_file
from support import dequantized, engine_variants, float64_reference, tiny

from lorafit.data.micro_batch import Sample, pack
from lorafit.engines.base import OutOfMemory, Setup
from lorafit.errors import EngineError, ModelError
from lorafit.planner.fast_path import MLX_DECODERS
from lorafit.run_folders.adapter import parse_lora_name, read_adapter

mx = pytest.importorskip("mlx.core", reason="MLX has no wheel here, or is not installed: pip install 'lorafit[mlx]'")
pytest.importorskip("mlx_lm")

from mlx import nn  # noqa: E402
from mlx.utils import tree_map  # noqa: E402
from mlx_lm.tuner.utils import load_adapters  # noqa: E402
from mlx_lm.utils import load_model  # noqa: E402

from lorafit.engines.mlx import decoder, device  # noqa: E402
from lorafit.engines.mlx.engine import MLXEngine  # noqa: E402
from lorafit.engines.mlx.load import load_base  # noqa: E402
from lorafit.engines.mlx.quantised import quantize_layers  # noqa: E402
from lorafit.training.preflight import check_attention  # noqa: E402

PLAN = tiny.make_plan(engine="mlx", token_budget=100)
CPU = next(way for way in engine_variants.WAYS if way.name == "MLX, CPU")
WIDE = {"hidden_size": 64, "intermediate_size": 128}  # widths that groups of 64 divide


@pytest.fixture(autouse=True)
def temporary_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every test start with an empty cache."""
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def wide_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models that MLX can quantize."""
    folder = tmp_path_factory.mktemp("wide")
    for family in ("llama", "granite"):
        tiny.save_model(family, folder / family, **WIDE)
    return folder


def open_mlx(folder: Path, **changes: Any) -> MLXEngine:
    plan = replace(PLAN, **changes)
    return MLXEngine.open(Setup(folder, str(folder), "cpu", plan.precision, plan.quantization, plan=plan))


def logits(engine: MLXEngine, ids: list[int]) -> np.ndarray:
    """Return the logits of the token after `ids`."""
    return np.array(engine.body.next_logits(engine.params, ids, engine.body.new_cache()))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3"])
def test_dense_families_take_our_own_decoder(models: Path, family: str) -> None:
    engine = open_mlx(models / family)
    assert any("Fast path" in note for note in engine.facts.notes)
    assert engine.facts.supports_packing


def test_the_planner_knows_the_types_of_our_own_decoder() -> None:
    assert set(decoder.LLAMAS + decoder.GEMMAS) == MLX_DECODERS


def test_settings_that_mlx_lm_looks_for_at_the_top_are_put_there(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 1234.0}
    folder = tiny.save_model("llama", tmp_path, rope_parameters=rope)
    assert "rope_theta" not in json.loads((folder / "config.json").read_text())
    assert load_base(Setup(folder, "x", "cpu", "fp32")).model.args.rope_theta == 1234.0
    assert load_model(folder)[0].args.rope_theta != 1234.0  # mlx_lm alone ignores the setting


def test_a_model_that_mlx_lm_reads_otherwise_than_transformers_is_seen_at_load(tmp_path: Path) -> None:
    """Only mlx_lm reads `rope_traditional`: it rotates neighboring channels instead of the halves of a head."""
    engine = open_mlx(tiny.save_model("llama", tmp_path, rope_traditional=True))
    assert any("the fast path gives different results" in note for note in engine.facts.notes)


def test_a_model_that_packs_wrongly_trains_sample_by_sample(tmp_path: Path) -> None:
    """LFM2's convolutions run across the boundaries of packed samples."""
    config = transformers.Lfm2Config(
        **tiny.SHAPE,
        layer_types=["conv", "full_attention", "conv"],
        block_dim=32,
        block_multiple_of=8,
        block_ffn_dim_multiplier=1.0,
        block_auto_adjust_ff_dim=False,
        block_ff_dim=64,
    )
    folder = tmp_path / "model"
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    engine = open_mlx(folder)
    assert not engine.facts.supports_packing
    assert any("computed one at a time" in note for note in engine.facts.notes)
    adapter = engine_variants.start_with_b(engine, tmp_path / "adapter")
    right = float64_reference.reference(folder, adapter, PLAN, engine_variants.SAMPLES)
    assert engine_variants.run(engine, PLAN, range(1, 2)) == pytest.approx([right.loss], rel=1e-6)


@pytest.mark.parametrize("family", ["mamba", "gpt_oss"])
def test_what_mlx_cannot_train_is_refused_with_a_fix(models: Path, family: str) -> None:
    with pytest.raises(ModelError) as error:
        open_mlx(models / family)
    assert "torch" in str(error.value.fix)


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
def test_an_adapter_of_ours_converted_gives_mlx_lms_own_model_the_same_logits(tmp_path: Path, family: str) -> None:
    folder = tiny.save_model(family, tmp_path / "model", **({"sliding_window": 99} if family == "gemma2" else {}))
    engine = open_mlx(folder)
    peft_folder = engine_variants.start_with_b(engine, tmp_path / "peft")
    config, tensors = read_adapter(peft_folder)
    mlx_folder = tmp_path / "mlx"
    mlx_folder.mkdir()
    transposed = {}
    for name, tensor in tensors.items():
        module, which = parse_lora_name(name) or ("", "")
        transposed[f"{module}.lora_{which.lower()}"] = np.ascontiguousarray(tensor.T)
    save_file(transposed, mlx_folder / "adapters.safetensors")
    keys = sorted({re.sub(r"^model\.layers\.\d+\.", "", name).rpartition(".")[0] for name in transposed})
    facts = {"rank": config.r, "dropout": 0.0, "scale": config.scale_of("q_proj"), "keys": keys}
    (mlx_folder / "adapter_config.json").write_text(
        json.dumps({"fine_tune_type": "lora", "num_layers": 3, "lora_parameters": facts})
    )
    base = load_base(Setup(folder, "x", "cpu", "fp32"))
    model = load_adapters(base.model, str(mlx_folder))
    ids = list(range(5, 20))
    right = np.array(model(mx.array([ids]))[0, -1])
    assert np.abs(logits(engine, ids) - right).max() < 2e-4
    assert np.abs(logits(engine, ids) - logits(open_mlx(folder), ids)).max() > 1e-2


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
@pytest.mark.parametrize("family", ["llama", "granite"])
def test_gradients_through_a_quantised_base_equal_those_through_its_dequantised_weights(
    wide_models: Path, tmp_path: Path, family: str, quantization: str
) -> None:
    folder = wide_models / family
    engine = open_mlx(folder, quantization=quantization)
    assert dequantized.plain_weights(engine).keys() == engine.body.modules.keys()
    exact_folder = dequantized.plain_model(engine, folder, tmp_path / "exact")
    adapter = engine_variants.start_with_b(engine, tmp_path / "adapter")
    loss, grads = engine_variants.loss_and_gradients(
        CPU, folder, replace(PLAN, quantization=quantization), adapter, tmp_path / "a"
    )
    right, wanted = engine_variants.loss_and_gradients(CPU, exact_folder, PLAN, adapter, tmp_path / "b")
    unquantised, _grads = engine_variants.loss_and_gradients(CPU, folder, PLAN, adapter, tmp_path / "c")
    assert loss == pytest.approx(right, rel=1e-5)
    assert engine_variants.worst(grads, wanted) < 1e-4
    assert loss != pytest.approx(unquantised, rel=1e-5)


def test_a_quantised_base_is_made_once_and_an_mlx_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder, cache = tiny.save_model("llama", tmp_path / "model", **WIDE), tmp_path / "cache" / "mlx"
    first = open_mlx(folder, quantization="4bit")
    (made,) = cache.iterdir()
    written = [(path.name, path.stat().st_ino, path.stat().st_mtime_ns) for path in made.iterdir()]
    again = open_mlx(folder, quantization="4bit")
    assert list(cache.iterdir()) == [made]
    assert [(path.name, path.stat().st_ino, path.stat().st_mtime_ns) for path in made.iterdir()] == written
    from_the_cache = open_mlx(made)
    ids = list(range(5, 20))
    for engine in (again, from_the_cache):
        assert np.array_equal(logits(engine, ids), logits(first, ids))
    assert load_model(made)[0] is not None
    (folder / "model.safetensors").touch()
    open_mlx(folder, quantization="4bit")
    assert len(list(cache.iterdir())) == 2


def test_layers_are_quantised_one_by_one_so_that_memory_holds_one_of_them_unpacked(tmp_path: Path) -> None:
    model = nn.Module()
    model.layers = [nn.Linear(1024, 1024, bias=False) for _layer in range(24)]
    model.update(
        tree_map(lambda a: a.astype(mx.bfloat16), model.parameters())
    )  # lazy, like weights that are not read yet
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    quantize_layers(model, 4)
    mx.eval(model.parameters())
    held = mx.get_active_memory() - before
    assert mx.get_peak_memory() - before < held + 5 * 4 * 1024**2  # five float32 copies of one weight
    assert all(isinstance(layer, nn.QuantizedLinear) for layer in model.layers)


def test_a_gpu_that_failed_ends_the_run() -> None:
    text = "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)."
    with pytest.raises(EngineError) as error, device.translated():
        raise RuntimeError(text)
    assert not isinstance(error.value, OutOfMemory)
    assert "--resume" in str(error.value.fix)


@pytest.mark.parametrize("text", ["[malloc] Unable to allocate 9 bytes.", "[metal::malloc] Resource limit (499000) exceeded.",
    "[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum allowed buffer size of 8 bytes."])  # fmt: skip
def test_what_mlx_says_when_memory_runs_out_is_understood(text: str) -> None:
    with pytest.raises(OutOfMemory), device.translated():
        raise RuntimeError(text)


def test_more_memory_than_planned_splits_the_step_but_never_a_sample(models: Path) -> None:
    engine = open_mlx(models / "llama")
    engine.setup = replace(engine.setup, plan=replace(engine.plan, available_bytes=1))
    data = engine_variants.step_batch(PLAN, 1)
    with pytest.raises(OutOfMemory, match="MLX used more memory"):
        engine.step(1, data.micro_batches, data.num_targets, 1e-3)
    alone = engine_variants.step_batch(replace(PLAN, max_micro_batch=1), 1)
    engine.step(1, alone.micro_batches, alone.num_targets, 1e-3)


def test_a_loss_that_is_not_a_number_ends_the_run_and_changes_nothing(models: Path) -> None:
    engine = open_mlx(models / "llama")
    name = next(n for n in engine.params if ".lora_B." in n)
    engine.params[name] = mx.full(engine.params[name].shape, float("nan"))
    before = engine.params
    data = engine_variants.step_batch(PLAN, 1)
    with pytest.raises(EngineError, match="not finite"):
        engine.step(1, data.micro_batches, data.num_targets, 1e-3)
    assert engine.params is before


def test_a_sample_without_targets_has_no_loss_and_no_padding_counts(models: Path) -> None:
    """mlx_lm returns nan for a sample whose answer is truncated away, and counts a padding token of each sample."""
    engine = open_mlx(models / "llama")
    question = Sample(np.arange(3, 20, dtype=np.int32), np.zeros(17, np.bool_))
    answer = Sample(np.arange(3, 12, dtype=np.int32), np.arange(9) >= 4)
    alone = engine.evaluate([pack([answer], [0], [0])])
    both = engine.evaluate([pack([question, answer], [0, 1], [0, 1])])
    assert (both.num_targets, alone.num_targets) == (5, 5)
    assert both.loss_sum == pytest.approx(alone.loss_sum, rel=1e-6)
    assert engine.evaluate([pack([question], [0], [0])]).loss_sum == 0.0
    data = pack([question], [0], [0])
    assert engine.step(1, [data, pack([answer], [0], [1])], 5, 1e-3).loss_sum == pytest.approx(alone.loss_sum, rel=1e-6)


def test_attention_in_blocks_equals_a_float64_reference() -> None:
    """The queries fill two blocks and a part of a third. One window is longer than a block, one shorter."""
    attention = pytest.importorskip("lorafit.engines.mlx.attention")
    torch = pytest.importorskip("torch")
    device.use_device("cpu", "fp32")
    length, longer, shorter = (attention.CPU_BLOCK * share // 8 for share in (19, 10, 3))
    rng = np.random.default_rng(0)
    q, g = (rng.normal(size=(1, 4, length, 8)).astype(np.float32) for _i in range(2))
    k, v = (rng.normal(size=(1, 2, length, 8)).astype(np.float32) for _i in range(2))
    for window, cap in ((None, None), (longer, None), (None, 2.0), (shorter, 3.0)):
        wanted = [torch.from_numpy(t).double().requires_grad_() for t in (q, k, v)]
        scores = wanted[0] @ wanted[1].repeat_interleave(2, 1).transpose(2, 3) * 0.3
        scores = scores if cap is None else cap * torch.tanh(scores / cap)
        away = torch.arange(length)[:, None] - torch.arange(length)
        allowed = (away >= 0) & (away < (window or length))
        out = torch.softmax(scores.masked_fill(~allowed, -np.inf), -1) @ wanted[2].repeat_interleave(2, 1)
        out.backward(torch.from_numpy(g).double())
        attend = attention.trained_attention(attention.AttentionKind(0.3, window, cap))
        outs, grads = mx.vjp(lambda *args, f=attend: f(*args), [mx.array(t) for t in (q, k, v)], [mx.array(g)])
        pairs = [(outs[0], out.detach()), *((a, b.grad) for a, b in zip(grads, wanted, strict=True))]
        for found, right in pairs:
            assert float(np.linalg.norm(np.array(found) - right.numpy()) / right.norm()) < 2e-6


def test_a_window_that_mlx_lm_ignores_limits_the_samples(tmp_path: Path) -> None:
    """mlx_lm 0.32 computes StarCoder2 with full attention."""
    config = transformers.Starcoder2Config(**tiny.SHAPE, sliding_window=8)
    engine = CPU.open(tiny.save_random(config, tmp_path), PLAN)
    assert engine.facts.longest_sample == 8
    check_attention("a model", 8, longest=8)
    with pytest.raises(ModelError, match="attention of this model wrongly") as error:
        check_attention("a model", 8, longest=9)
    assert error.value.fix == "Use `--engine torch`, or truncate the samples: `--max_length 8`."


def test_a_window_that_mlx_lm_computes_limits_nothing(tmp_path: Path) -> None:
    config = transformers.Cohere2Config(**{**tiny.SHAPE, "num_hidden_layers": 4}, sliding_window=8, head_dim=8)
    engine = CPU.open(tiny.save_random(config, tmp_path), PLAN)
    assert engine.facts.longest_sample is None
    assert engine.facts.supports_packing


def test_a_type_that_mlx_lm_computes_otherwise_is_refused(tmp_path: Path) -> None:
    config = transformers.GlmConfig(**tiny.SHAPE, head_dim=8, partial_rotary_factor=0.5)
    with pytest.raises(ModelError, match="otherwise than transformers") as error:
        CPU.open(tiny.save_random(config, tmp_path), PLAN)
    assert error.value.found == "glm: the rotary embedding covers the whole head"


def test_layers_that_mlx_lm_computes_in_another_form_are_named(tmp_path: Path) -> None:
    """DeepSeek V3's kv_b_proj is split in mlx_lm."""
    config = transformers.DeepseekV3Config(
        **{**tiny.SHAPE, "num_key_value_heads": 4}, q_lora_rank=16, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8,
        v_head_dim=8, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_shared_experts=1,
        first_k_dense_replace=1, n_group=1, topk_group=1
    )  # fmt: skip
    engine = CPU.open(tiny.save_random(config, tmp_path), PLAN)
    assert "No adapter on 3 layers that mlx_lm computes in another form: kv_b_proj." in engine.facts.notes
    assert not any("kv_b_proj" in name for name in engine.facts.target_modules)
