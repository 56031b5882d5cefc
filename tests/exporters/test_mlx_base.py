"""Bases that mlx_lm quantized: the same weights as MLX's own, and an export that answers as MLX does with the adapter."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import tiny
from support.adapters import random_like

from lorafit.cli.app import main
from lorafit.engines.base import Setup
from lorafit.engines.torch.engine import TorchEngine
from lorafit.engines.torch.log_probs import log_probs
from lorafit.errors import LorafitError
from lorafit.exporters import mlx_base
from lorafit.exporters.export import Exported

mx = pytest.importorskip("mlx.core")
from lorafit.engines.mlx.engine import MLXEngine  # noqa: E402

Folders = Callable[[str], tuple[Path, Path]]
Export = Callable[..., Exported]
IDS = [1, 70, 71, 90, 110, 2, 60]
OTHER = "model.layers.1.mlp.down_proj"  # in 6 bits, as in mlx_lm's mixed recipes


def quantize(base: Path, target: Path, bits: int = 4, dtype: Any = None, **settings: Any) -> Path:
    """Write the model in `base` as mlx_lm does, in groups of 32, and return `target`."""
    shutil.copytree(base, target)
    tensors = {}
    for name, array in load_file(base / "model.safetensors").items():
        weight = mx.array(array).astype(dtype or mx.bfloat16)
        if weight.ndim < 2:
            tensors[name] = weight
            continue
        module = name.removesuffix(".weight")
        words = mx.quantize(weight, group_size=32, bits=6 if module == OTHER else bits)
        tensors |= dict(zip((name, f"{module}.scales", f"{module}.biases"), words, strict=True))
    mx.save_safetensors(str(target / "model.safetensors"), tensors, {"format": "mlx"})
    facts = json.loads((base / "config.json").read_text("utf-8"))
    told = {"group_size": 32, "bits": bits, "mode": "affine", OTHER: {"group_size": 32, "bits": 6}, **settings}
    (target / "config.json").write_text(
        json.dumps({**facts, "quantization": told, "quantization_config": told}), "utf-8"
    )
    return target


def with_base(adapter: Path, target: Path, base: Path) -> Path:
    """Return a random adapter on the model in `base`."""
    return random_like(adapter, target, 4, base_model=str(base))


@pytest.mark.parametrize("bits", mlx_base.BITS)
@pytest.mark.parametrize("group", [32, 64, 128])
def test_the_weights_are_those_of_mlx_bit_for_bit(bits: int, group: int) -> None:
    weight = mx.array(np.random.default_rng(bits).normal(size=(96, 512)).astype(np.float32))
    words, scales, biases = mx.quantize(weight, group_size=group, bits=bits)
    for dtype in (mx.float32, mx.bfloat16, mx.float16):
        stored = [one.astype(dtype).astype(mx.float32) for one in (scales, biases)]
        found = mlx_base.dequantized(np.array(words), np.array(stored[0]), np.array(stored[1]), bits)
        np.testing.assert_array_equal(found, np.array(mx.dequantize(words, *stored, group_size=group, bits=bits)))


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gemma3_text"])
def test_the_export_answers_as_mlx_does(
    base_and_adapter: Folders, run_export: Export, tmp_path: Path, family: str
) -> None:
    base, adapter = base_and_adapter(family)
    packed = quantize(base, tmp_path / "packed")
    mine = with_base(adapter, tmp_path / "mine", packed)
    exported = run_export(mine, dtype="fp32")
    live = MLXEngine.open(Setup(packed, str(packed), "cpu", "fp32", "4bit"))
    live.load_adapter(mine)
    logits = np.array(live.body.next_logits(live.params, IDS, live.body.new_cache())).astype(np.float64)
    wanted = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    engine = TorchEngine.open(Setup(exported.folder, str(exported.folder), "cpu", "fp32"))
    found = log_probs(engine, IDS, [len(IDS) - 1])[0]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4)
    assert "quantization" not in json.loads((exported.folder / "config.json").read_text("utf-8"))
    assert exported.certificate.base["name"] == "packed"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_type_is_that_of_the_scales(base_and_adapter: Folders, run_export: Export, tmp_path: Path) -> None:
    base, adapter = base_and_adapter("llama")
    mine = with_base(adapter, tmp_path / "mine", quantize(base, tmp_path / "packed", dtype=mx.float16))
    exported = run_export(mine)
    assert exported.certificate.forms[0].dtype == "F16"
    assert exported.certificate.forms[0].behaviour[0] is not None
    assert exported.certificate.forms[0].behaviour[0].ratio is not None
    assert exported.certificate.forms[0].behaviour[0].ratio < 0.01
    assert "4 bits (MLX)" in exported.certificate.notes[0]


def test_the_adapter_alone_needs_no_dequantized_base(
    base_and_adapter: Folders, run_export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = base_and_adapter("llama")
    mine = with_base(adapter, tmp_path / "mine", quantize(base, tmp_path / "packed"))
    monkeypatch.setattr(mlx_base, "_write_weights", None)
    assert run_export(mine, to="peft").folder.is_dir()
    with pytest.raises(LorafitError, match="does not take") as refused:
        run_export(mine, to="vllm", output=str(tmp_path / "second"))
    assert "MLX" in str(refused.value.found)


@pytest.mark.parametrize("stored", [True, False], ids=["a packed folder", "packed for the training"])
def test_a_run_with_mlx_is_measured_on_its_validation_rows(
    run_export: Export, tmp_path: Path, demo_folder: Path, stored: bool
) -> None:
    base = tiny.save_chat_model(tmp_path / "base", demo_folder, tie_word_embeddings=True)
    packed = quantize(base, tmp_path / "packed") if stored else base
    rows = [{"instruction": f"第{i}题，{i}加一是多少？", "output": f"答案是{i + 1}。"} for i in range(40)]
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    words = f"--model_name {packed} --dataset_name {tmp_path / 'rows.json'} --output_dir {tmp_path / 'output'}"
    settings = (
        "--engine mlx --device cpu --max_steps 6 --effective_batch 8 --max_length 64 --learning_rate 0.01 --val_size 8"
    ) + ("" if stored else " --quantization 4bit")
    assert main(["train", "--no_supervisor", *words.split(), *settings.split()]) == 0
    (run,) = (tmp_path / "output").iterdir()
    exported = run_export(run)
    found = exported.certificate.forms[0].behaviour[0]
    assert found is not None
    assert (found.rows, exported.certificate.forms[0].dtype) == ("validation", "BF16" if stored else "F32")
    assert found.ratio is not None
    assert found.ratio < 0.05
    assert "4 bits (MLX), dequantized" in exported.certificate.notes[0]
    if not stored:  # the export has the quantized base's weights and not those of the files
        live = MLXEngine.open(Setup(base, str(base), "cpu", "fp32", "4bit"))
        live.load_adapter(run / "final_model")
        logits = np.array(live.body.next_logits(live.params, IDS, live.body.new_cache())).astype(np.float64)
        wanted = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        engine = TorchEngine.open(Setup(exported.folder, str(exported.folder), "cpu", "fp32"))
        np.testing.assert_allclose(log_probs(engine, IDS, [len(IDS) - 1])[0], wanted, rtol=0, atol=1e-3)
        with pytest.raises(LorafitError, match="grid") as refused:
            run_export(run, to="mlx", bits=4, output=str(tmp_path / "again"))
        assert "--bits 8" in str(refused.value.fix)
        assert run_export(run, to="mlx", bits=8, output=str(tmp_path / "eight")).certificate.forms[0].behaviour
    assert str(tmp_path) not in (exported.folder / "export.json").read_text("utf-8")


@pytest.mark.parametrize(
    ("family", "settings", "found"),
    [
        ("llama", {"mode": "mxfp4"}, "mxfp4"),
        ("llama", {OTHER: {"group_size": 32, "bits": 6, "mode": "nvfp4"}}, "nvfp4"),
        ("olmo2", {}, "olmo2"),
    ],
)
def test_other_quantizations_are_refused_by_name(
    base_and_adapter: Folders, run_export: Export, tmp_path: Path, family: str, settings: dict[str, Any], found: str
) -> None:
    base, adapter = base_and_adapter(family)
    packed = quantize(base, tmp_path / "packed", **settings)
    with pytest.raises(LorafitError, match="dequantize") as refused:
        run_export(with_base(adapter, tmp_path / "mine", packed))
    assert found in str(refused.value.found)
    assert "--to peft" in str(refused.value.fix)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
