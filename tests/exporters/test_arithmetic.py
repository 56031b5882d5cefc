"""Rounding, deltas and the files that are written, in numpy alone, beside torch's results."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from lorafit.exporters.certificate import Survival
from lorafit.exporters.merge import BLOCK, Delta, merged_tensors
from lorafit.exporters.merged import _write_tensor
from lorafit.exporters.products import Product, probe_vector
from lorafit.exporters.rounding import rounded, widened
from lorafit.exporters.weight_writer import WeightWriter, float_slot

KINDS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@pytest.mark.parametrize("dtype", KINDS)
def test_values_are_rounded_as_by_torch(dtype: str) -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=100_000) * 10.0 ** rng.integers(-12, 9, 100_000)).astype(np.float32)
    values = np.concatenate(
        [values, np.float32([0, -0.0, 1e-40, 3.4e38, np.inf, -np.inf, np.nan, 1.00390625, 1.01171875])]
    )
    wanted = torch.from_numpy(values).to(KINDS[dtype]).float().numpy()
    found = widened(rounded(values, dtype), dtype)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_large_tensor_is_merged_in_little_memory(tmp_path: Path, dtype: str) -> None:
    """A tensor of 64 MB in float32: blocks of a few MB are in memory, and not the tensor."""
    rng = np.random.default_rng(0)
    weight, a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((8192, 2048), (8, 2048), (8192, 8)))
    save_file({"w.weight": weight}, tmp_path / "model.safetensors")
    (tensor,) = merged_tensors(tmp_path, {"w.weight": Delta(a, b, 0.5)})
    survival = Survival({}, {})
    layers: dict[str, Product] = {}
    tracemalloc.start()
    with WeightWriter(tmp_path / "out.safetensors", [float_slot("w.weight", dtype, weight.shape)]) as writer:
        _write_tensor(tensor, dtype, writer, survival, layers)
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * 4 * BLOCK < 64 * 2**20
    wanted = torch.from_numpy(weight) + 0.5 * torch.from_numpy(b) @ torch.from_numpy(a)
    found = load_file(tmp_path / "out.safetensors")["w.weight"]
    assert found.dtype == KINDS[dtype]
    assert float((found.float() - wanted.to(KINDS[dtype]).float()).norm() / wanted.norm()) < 1e-4
    assert survival.slopes["w.weight"] == pytest.approx(1.0, abs=1e-3)
    np.testing.assert_allclose(layers["w.weight"].weight, weight @ probe_vector(2048), rtol=1e-3, atol=1e-3)
    weight, delta = tensor.parts()
    assert delta is not None
    np.testing.assert_allclose(weight + delta, wanted.numpy(), rtol=1e-5, atol=1e-5)
