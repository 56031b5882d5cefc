"""Exports for MLX: mlx_lm loads them, they compute base and adapter, and planted faults are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import tiny
from support.model_zoo.folder import save_family

from lorafit.engines.base import Setup
from lorafit.engines.torch.engine import TorchEngine
from lorafit.errors import LorafitError
from lorafit.exporters import weight_writer
from lorafit.exporters.export import Exported
from lorafit.exporters.mlx import export as mlx_export
from lorafit.models import spec
from lorafit.models.weight_files import read_headers
from lorafit.run_folders.adapter import AdapterConfig, lora_names, write_adapter

pytest.importorskip("mlx.core", reason="MLX has no wheel here, or is not installed: pip install 'lorafit[mlx]'")
mlx_lm = pytest.importorskip("mlx_lm")

import mlx.core as mx  # noqa: E402
from mlx_lm.models import llama  # noqa: E402

Folders = Callable[[str], tuple[Path, Path]]
Export = Callable[..., Exported]
# Types whose folders mlx_lm reads as transformers 5 saves them.
FAMILIES = ("llama", "ministral3", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma3_text", "phi3", "glm4_moe", "ernie4_5",
            "smollm3", "deepseek_v3")  # fmt: skip
IDS = list(range(3, 40))


def logits(folder: Path, adapter: Path | None = None) -> Any:
    """Return the logits that mlx_lm computes in float32, as a user loads the folder."""
    model = mlx_lm.load(str(folder), adapter_path=None if adapter is None else str(adapter))[0]
    model.set_dtype(mx.float32)
    return np.array(model(mx.array([IDS]))[0])


def live_logits(base: Path, adapter: Path) -> Any:
    from lorafit.engines.torch.log_probs import log_probs

    engine = TorchEngine.open(Setup(base, "x", "cpu", "fp32"))
    engine.load_adapter(adapter)
    return log_probs(engine, IDS, range(len(IDS)))


def normed(found: Any) -> Any:
    return found - np.log(np.exp(found).sum(-1, keepdims=True))


@pytest.mark.parametrize(
    "family", [*FAMILIES[:4], *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[4:])]
)
def test_mlx_lm_computes_base_and_adapter(base_and_adapter: Folders, run_export: Export, family: str) -> None:
    _base, adapter = base_and_adapter(family)
    exported = run_export(adapter, to="mlx")
    (form,) = exported.certificate.forms
    assert form.survival is not None
    assert form.runtime is not None
    assert form.runtime.startswith("mlx_lm ")
    assert form.dtype == "BF16"  # the base is in float32
    assert np.median(list(form.survival.slopes.values())) > 0.9
    assert form.behaviour[0].ratio is None or form.behaviour[0].ratio < 0.05
    assert form.strings > 1000
    assert len(form.survival.slopes) >= len(json.loads((adapter / "adapter_config.json").read_text())["target_modules"])
    assert "_name_or_path" not in spec.read_config(exported.folder)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights_are_those_of_mlx_lm_convert(
    base_and_adapter: Folders, run_export: Export, tmp_path: Path, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _base, adapter = base_and_adapter("qwen3")
    monkeypatch.setattr(mlx_export, "GATES", {4: 9.0, 8: 9.0})  # a tiny model does not stand 4 bits
    exported = run_export(adapter, to="mlx", bits=bits)
    whole = run_export(adapter, to="merged", output=str(tmp_path / "whole"))
    mlx_lm.convert(str(whole.folder), str(tmp_path / "wanted"), quantize=True, q_bits=bits)
    found, wanted = (mx.load(str(folder / "model.safetensors")) for folder in (exported.folder, tmp_path / "wanted"))
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].shape == array.shape
        same = (found[name] == array.astype(found[name].dtype)).mean()
        assert float(same) > 0.995, name  # the order of a sum differs
    facts = spec.read_config(exported.folder)
    assert facts["quantization"] == facts["quantization_config"] == {"group_size": 64, "bits": bits, "mode": "affine"}
    assert exported.certificate.forms[0].dtype == f"{bits}-bit"
    model = mlx_lm.load(str(exported.folder))[0]
    assert "scales" in model.model.embed_tokens


def test_a_tied_head_stays_tied_and_a_large_model_is_written_in_shards(
    base_and_adapter: Folders, run_export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_writer, "SHARD_BYTES", 60_000)
    _base, adapter = base_and_adapter("gemma3_text")
    exported = run_export(adapter, to="mlx")
    assert len(list(exported.folder.glob("model-*.safetensors"))) > 2
    names = json.loads((exported.folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert not [name for name in names if "lm_head" in name]
    assert np.isfinite(logits(exported.folder)).all()


FAULTS: dict[str, Any] = {
    "the base is exported": lambda deltas: {name: one._replace(scale=1e-9) for name, one in deltas.items()},
    "half of alpha": lambda deltas: {name: one._replace(scale=one.scale / 2) for name, one in deltas.items()},
    "rows in another order": lambda deltas: {name: one._replace(b=one.b[::-1].copy()) for name, one in deltas.items()},
    "half of the layers": lambda deltas: dict(list(deltas.items())[::2]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refused(
    base_and_adapter: Folders, run_export: Export, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str
) -> None:
    real = mlx_export.deltas
    monkeypatch.setattr(mlx_export, "deltas", lambda *args: FAULTS[fault](real(*args)))
    with pytest.raises(LorafitError) as refused:
        run_export(base_and_adapter("qwen3")[1], to="mlx")
    assert refused.value.fix
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_mlx_lm_drops_is_refused(
    base_and_adapter: Folders, run_export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = base_and_adapter("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    own = mx.load(str(base / "model.safetensors"))[name]
    real = llama.Model.sanitize
    monkeypatch.setattr(llama.Model, "sanitize", lambda self, weights: real(self, weights | {name: own}))
    with pytest.raises(LorafitError, match="leaves out"):
        run_export(adapter, to="mlx")


def test_four_bits_of_a_base_on_the_grid_of_four_bits_are_refused(run_export: Export, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    save_family("llama", base)
    weights = load_file(base / "model.safetensors")
    for name, values in weights.items():
        if values.ndim == 2:
            weights[name] = np.array(mx.dequantize(*mx.quantize(mx.array(values), 64, 4), 64, 4))
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    engine = TorchEngine.open(Setup(base, str(base), "cpu", "fp32", plan=tiny.make_plan()))
    tiny.fill_b(engine)
    for layer in engine.layers.values():
        layer.lora_B.data *= 0.2
    engine.save_adapter(adapter)
    with pytest.raises(LorafitError, match="take away") as refused:
        run_export(adapter, to="mlx", bits=4)
    assert "--bits 8" in str(refused.value.fix)
    assert run_export(adapter, to="mlx", bits=16).certificate.forms[0].behaviour


def test_a_base_that_mlx_quantized_to_four_bits_is_not_quantized_again(
    base_and_adapter: Folders, run_export: Export, tmp_path: Path
) -> None:
    base, adapter = base_and_adapter("llama")
    mlx_lm.convert(str(base), str(tmp_path / "packed"), quantize=True, q_bits=4)
    with pytest.raises(LorafitError, match="grid") as refused:
        run_export(adapter, to="mlx", bits=4, base_model=str(tmp_path / "packed"))
    assert "--bits 8" in str(refused.value.fix)


def write_patterns(base: Path, folder: Path, rslora: bool) -> Path:
    """Write an adapter with two ranks and two alphas, on some layers."""
    modules = [f"model.layers.{layer}.{part}" for layer in range(2) for part in ("self_attn.q_proj", "mlp.down_proj")]
    config = AdapterConfig("base", 4, 6.0, 0.0, ["q_proj", "down_proj"], rslora, {"down_proj": 2}, {"down_proj": 5.0})
    shapes = {header.name: header.shape for header in read_headers(base / "model.safetensors")}
    random, tensors = np.random.default_rng(0), {}
    for module in modules:
        (outputs, inputs), rank = shapes[f"{module}.weight"], config.rank_of(module)
        pair = random.normal(0, 0.1, (rank, inputs)), random.normal(0, 0.1, (outputs, rank))
        tensors |= dict(zip(lora_names(module), (part.astype(np.float32) for part in pair), strict=True))
    write_adapter(folder, config, tensors)
    return folder


@pytest.mark.parametrize("kind", ["plain", "rslora", "patterns"])
def test_mlx_lm_applies_the_adapter_alone(
    base_and_adapter: Folders, run_export: Export, tmp_path: Path, kind: str
) -> None:
    base, adapter = base_and_adapter("qwen3")
    if kind != "plain":
        adapter = write_patterns(base, tmp_path / "adapter", kind == "rslora")
    exported = run_export(adapter, to="mlx", adapter_only=True, base_model=str(base))
    wanted = live_logits(base, adapter)
    assert np.abs(normed(logits(base, exported.folder)) - wanted).max() < 2e-3
    assert np.abs(normed(logits(base)) - wanted).max() > 0.05
    assert exported.certificate.forms[0].behaviour[0].ratio < 1e-3
    assert "--adapter-path {folder}" in exported.certificate.commands[0]


def test_types_that_mlx_lm_does_not_know_or_computes_otherwise_are_refused_before_weights_are_read(
    base_and_adapter: Folders, run_export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlx_export, "adapted_tensors", None)
    for family in ("glm", "falcon"):
        with pytest.raises(LorafitError, match="model type") as refused:
            run_export(base_and_adapter(family)[1], to="mlx")
        assert family in str(refused.value.found)
        assert "--to merged" in str(refused.value.fix)
