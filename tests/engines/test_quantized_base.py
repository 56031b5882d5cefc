"""Gradients through a quantized base equal those through its dequantized weights."""

import dataclasses
import weakref
from pathlib import Path

import pytest
import torch
from support import tiny

from lorafit.data.batching import build_step_batch
from lorafit.engines.torch import low_bit_linear
from lorafit.planner.memory import PACKED_BLOCK
from lorafit.planner.schedule import step_samples


@pytest.mark.parametrize(("quantization", "tolerance"), [("4bit", 1e-5), ("8bit", 0.03)])
def test_gradients_through_a_quantised_base_equal_those_through_its_dequantised_weights(
    models: Path, quantization: str, tolerance: float
) -> None:
    """8-bit rounds the inputs too; 4-bit computes exactly with the dequantized weights."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    plan, samples = tiny.make_plan(quantization=quantization), tiny.make_samples(32)
    engine = tiny.open_engine(models / "llama", plan)
    exact = tiny.open_engine(models / "llama", dataclasses.replace(plan, quantization="none"))
    exact.packed = None  # the fast path would keep the weights that are replaced below
    for name, layer in engine.layers.items():
        base = layer.base
        if quantization == "4bit":
            weight = bitsandbytes.functional.dequantize_4bit(base.weight.data, base.weight.quant_state)
        else:
            owner = base.weight if base.weight.CB is not None else base.state  # CB moves there at the first matmul
            weight = owner.CB.float() * owner.SCB[:, None] / 127
        assert type(base) is not torch.nn.Linear
        exact.layers[name].base.weight.data = weight.float()
    tiny.fill_b(engine)
    tiny.fill_b(exact)
    data = build_step_batch(samples, step_samples(plan, 1), 100, 4096)
    grads = tiny.gradients(engine, 1, data.micro_batches, data.num_targets)
    wanted = tiny.gradients(exact, 1, data.micro_batches, data.num_targets)
    assert tiny.worst(grads, wanted) < tolerance


def rows_of(inputs: int) -> int:
    """Return the rows of a weight of `inputs` columns that fills a block and part of a second one."""
    return PACKED_BLOCK * 5 // 4 // inputs + 3


# The kernel that unpacks in place does not take groups of 2048 numbers. Such a weight is unpacked as on a GPU.
@pytest.mark.parametrize(("group", "in_place"), [(64, True), (2048, False)])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(
    "shape", [(rows_of(192), 192), (7, 64), (rows_of(40), 40), (rows_of(10), 10), (2, PACKED_BLOCK + 2048)]
)
def test_rows_of_a_packed_weight_are_unpacked_in_blocks(
    shape: tuple[int, int], nested: bool, group: int, in_place: bool
) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.compiler.set_stance("force_eager"):  # bitsandbytes would compile its operators for groups of 2048
        params = bitsandbytes.nn.Params4bit(numbers, compress_statistics=nested, quant_type="nf4", blocksize=group)
        weight = params.to("cpu")
        assert (low_bit_linear._unpack_kernel(weight.quant_state) is not None) == in_place, (
            "bitsandbytes has its kernel under another name"
        )
        found = [(rows, part.clone()) for rows, part in low_bit_linear.weight_blocks([weight, weight], torch.float32)]
        whole = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    assert torch.equal(torch.cat([part for _rows, part in found]), torch.cat([whole, whole]))
    assert [rows.start for rows, _part in found][1:] == [rows.stop for rows, _part in found][:-1]
    assert len(found) > 2 or shape == (7, 64)


def test_an_8_bit_layer_does_not_keep_its_input(models: Path) -> None:
    """If the layer kept its input, gradient checkpointing would save no memory."""
    pytest.importorskip("bitsandbytes")
    engine = tiny.open_engine(models / "llama", tiny.make_plan(quantization="8bit"))
    base = next(iter(engine.layers.values())).base
    start = torch.ones(3, base.in_features, requires_grad=True)
    x = start * 2
    y, seen = base(x), weakref.ref(x)
    del x
    assert seen() is None
    y.sum().backward()
    assert start.grad is not None
    assert float(start.grad.abs().sum()) > 0
