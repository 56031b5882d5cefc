"""Base weights of any stored dtype are read into memory once, into their final place."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from lorafit.data.micro_batch import pack
from lorafit.engines.base import Setup
from lorafit.engines.torch.low_bit_linear import LowBitLinear
from lorafit.engines.torch.model import load_base
from lorafit.engines.torch.weights import lazy_weights, read_weights
from lorafit.sampling import Sampling


def tensors() -> dict[str, torch.Tensor]:
    """Return the attention weights of a layer; in the file they are not in the order of q, k and v."""
    torch.manual_seed(0)
    names = {"k_proj": 8, "q_proj": 16, "v_proj": 8, "o_proj": 16}
    return {f"layers.0.self_attn.{name}.weight": torch.randn(rows, 16) for name, rows in names.items()}


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_read_as_written_and_q_k_and_v_lie_end_to_end(tmp_path: Path, stored: torch.dtype) -> None:
    wanted = {name: tensor.to(stored) for name, tensor in tensors().items()}
    save_file(wanted, tmp_path / "model.safetensors")
    found = read_weights(tmp_path, torch.float32)
    assert found is not None
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in wanted.items())
    q, k, v = (found[f"layers.0.self_attn.{name}_proj.weight"] for name in "qkv")
    assert q.data_ptr() + q.nbytes == k.data_ptr()
    assert k.data_ptr() + k.nbytes == v.data_ptr()


def test_several_files_are_read(tmp_path: Path) -> None:
    parts = list(tensors().items())
    files = {"a.safetensors": dict(parts[:2]), "b.safetensors": dict(parts[2:])}
    for name, part in files.items():
        save_file(part, tmp_path / name)
    index = {"weight_map": {tensor: name for name, part in files.items() for tensor in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = read_weights(tmp_path, torch.float32)
    assert found is not None
    assert all(torch.equal(found[name], tensor) for name, tensor in parts)


def test_weights_that_are_not_floats_are_left_to_transformers(tmp_path: Path) -> None:
    save_file({"x": torch.ones(3, dtype=torch.int64)}, tmp_path / "model.safetensors")
    assert read_weights(tmp_path, torch.float32) is None


def test_the_models_own_modules_are_views_of_the_fused_weights_of_the_fast_path(tmp_path: Path) -> None:
    engine = tiny.open_engine(tiny.save_model("qwen2", tmp_path, use_sliding_window=False), tiny.make_plan())
    assert engine.packed is not None
    for layer in engine.packed.layers:
        for linear in layer.linears:
            for delta in linear.deltas:
                assert (
                    delta.layer.base.weight.untyped_storage().data_ptr()
                    == linear.weights[0].untyped_storage().data_ptr()
                )
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in engine.model.parameters()}
    adapter = sum(p.nbytes for p in engine._parameters().values())
    assert sum(storages.values()) - adapter <= 1.01 * sum(
        t.nbytes for t in load_file(tmp_path / "model.safetensors").values()
    )


def test_bfloat16_storage_takes_half_and_computes_what_float32_does_with_the_same_weights(tmp_path: Path) -> None:
    folder = tiny.save_model("llama", tmp_path)
    weights = {name: t.bfloat16() for name, t in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    half, whole = (tiny.open_engine(folder, tiny.make_plan(precision=name)) for name in ("bf16", "fp32"))
    stored = [m for m in half.model.modules() if isinstance(m, LowBitLinear)]
    assert stored
    assert all(m.weight.dtype == torch.bfloat16 for m in stored)
    assert not any(type(m) is nn.Linear for m in half.model.modules())
    tiny.fill_b(half)
    tiny.fill_b(whole)
    micro = [pack(tiny.make_samples(5), range(5), range(5))]
    grads, wanted = (tiny.gradients(engine, 1, micro, micro[0].num_targets) for engine in (half, whole))
    assert tiny.worst(grads, wanted) < 1e-5
    assert half.evaluate(micro).loss_sum == pytest.approx(whole.evaluate(micro).loss_sum, rel=1e-6)
    prompt = list(range(5, 25))
    answers = [list(e.generate(prompt, Sampling(temperature=0.0, max_new_tokens=8))) for e in (half, whole)]
    assert answers[0] == answers[1]


def test_a_lazy_tensor_is_read_from_its_file_when_it_is_used(tmp_path: Path) -> None:
    wanted = {name: tensor.bfloat16() for name, tensor in tensors().items()}
    save_file(wanted, tmp_path / "model.safetensors")
    found = lazy_weights(tmp_path)
    assert found is not None
    assert all(torch.equal(found[name][...], tensor) for name, tensor in wanted.items())
    save_file({"packed": torch.zeros(2, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    assert lazy_weights(tmp_path) is None


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_base_quantised_while_it_is_read_is_the_one_that_transformers_makes(models: Path, quantization: str) -> None:
    pytest.importorskip("bitsandbytes")
    folder = models / "llama"
    ours = load_base(Setup(folder, "x", "cpu", "fp32", quantization)).state_dict()
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    config = four_bits if quantization == "4bit" else BitsAndBytesConfig(load_in_8bit=True)
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map={"": "cpu"}, quantization_config=config
    ).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
