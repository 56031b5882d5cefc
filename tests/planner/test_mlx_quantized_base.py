"""A base model that mlx_lm quantized: shape and bytes come from its files, and it is planned for MLX only.

The model folder is written by hand: packed values in 32-bit words, with scales and biases for groups of 64.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.machines import CPU, M2_MAX, cuda, facts, reason
from support.machines import T4 as T4_GPU

from lorafit.config import TrainConfig
from lorafit.errors import DoesNotFit, ModelError
from lorafit.evaluation.model_request import AnswerRequest, choose_backend
from lorafit.hardware.detect import Machine
from lorafit.models.spec import ModelSpec, read_spec
from lorafit.planner.memory import weights_bytes
from lorafit.planner.plan import Plan
from lorafit.planner.planner import make_plan
from lorafit.units import GIB

HIDDEN, WIDE, VOCAB, GROUP = 128, 256, 96, 64
SIZES = {"self_attn.q_proj": (128, 128), "self_attn.v_proj": (64, 128), "mlp.down_proj": (128, 256)}
CONFIG: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": HIDDEN, "intermediate_size": WIDE, "vocab_size": VOCAB,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
SIX_BIT = "model.layers.1.mlp.down_proj"  # in 6 bits, as in mlx_lm's mixed recipes


def packed(name: str, rows: int, columns: int, bits: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return the three tensors of a quantized weight [rows, columns]: packed words, scales and biases."""
    scales = np.zeros((rows, columns // GROUP), np.float16)
    words = np.zeros((rows, columns * bits // 32), np.uint32)
    return {f"{name}.weight": words, f"{name}.scales": scales, f"{name}.biases": scales.copy()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with embedding and linears in 4 bits, one linear in 6 bits, and plain norms."""
    tensors = packed("model.embed_tokens", VOCAB, HIDDEN, 4)
    for layer in range(2):
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = np.zeros(HIDDEN, np.float16)
        for part, size in SIZES.items():
            name = f"model.layers.{layer}.{part}"
            tensors |= packed(name, *size, bits=6 if name == SIX_BIT else 4)
    save_file(tensors, tmp_path / "model.safetensors")
    bits = {"group_size": GROUP, "bits": 4, "mode": "affine", SIX_BIT: {"group_size": GROUP, "bits": 6}}
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "quantization": bits, "quantization_config": bits}))
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def test_linears_and_parameters_are_those_of_the_model_before_it_was_packed(folder: Path) -> None:
    spec = read_spec(folder)
    assert {(f"model.layers.{i}.{n}", s[1], s[0]) for i in range(2) for n, s in SIZES.items()} == {
        linear[:3] for linear in spec.linears
    }
    assert spec.parameters == VOCAB * HIDDEN + 2 * HIDDEN + 2 * sum(rows * columns for rows, columns in SIZES.values())
    assert (spec.tied, spec.packed and spec.packed.bits) == (True, 4)


def test_bytes_are_the_packed_ones_and_scales_in_the_runs_precision(folder: Path) -> None:
    spec = read_spec(folder)
    numbers_at_4 = spec.parameters - 2 * HIDDEN - 128 * 256
    words = numbers_at_4 // 2 + 128 * 256 * 6 // 8
    others = 2 * HIDDEN + 2 * (numbers_at_4 + 128 * 256) // GROUP
    assert spec.weight_bytes == words + 2 * others
    assert weights_bytes(spec, "bf16", "4bit") == words + 2 * others
    assert weights_bytes(spec, "fp32", "none") == words + 4 * others


def plan_for(machine: Machine, spec: ModelSpec, **settings: object) -> Plan:
    return make_plan(TrainConfig(**settings), machine, spec, facts())  # type: ignore[arg-type]


def test_it_is_planned_for_mlx_in_the_bits_that_it_has(folder: Path) -> None:
    # MLX counts as installed on a described machine.
    spec, mac, cpu = read_spec(folder), replace(M2_MAX, described=True), replace(CPU, described=True)
    plan = plan_for(mac, spec)
    assert (plan.engine, plan.quantization) == ("mlx", "4bit")
    assert plan.memory_terms["weights"] == spec.weight_bytes
    assert "as stored in the model files" in reason(plan, "quantization")
    assert plan_for(cpu, spec).engine == "mlx"
    assert choose_backend(AnswerRequest(), cpu, spec).engine == "mlx"


@pytest.mark.parametrize(
    ("machine", "settings", "message"),
    [
        (cuda(T4_GPU), {}, "PyTorch cannot read"),
        (replace(M2_MAX, described=True), {"engine": "torch"}, "PyTorch cannot read"),
        (replace(M2_MAX, described=True), {"quantization": "8bit"}, "different number of bits"),
        (replace(M2_MAX, described=True), {"quantization": "none"}, "different number of bits"),
    ],
)
def test_what_cannot_be_done_with_it_is_refused_before_anything_is_loaded(
    folder: Path, machine: Machine, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        plan_for(machine, read_spec(folder), **settings)


def test_where_it_does_not_fit_no_machine_is_named_that_cannot_read_it(folder: Path) -> None:
    spec = read_spec(folder)
    huge = replace(spec, packed=spec.packed and spec.packed._replace(size=12 * GIB))
    with pytest.raises(DoesNotFit) as error:
        plan_for(replace(M2_MAX, described=True, gpus=(replace(M2_MAX.gpus[0], available_bytes=8 * GIB),)), huge)
    assert '--machine "M2 Pro 32GB"' in str(error.value.fix)
