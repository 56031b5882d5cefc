"""Are gradients through a quantised base those through the weights that it stands for?"""

import dataclasses
import weakref
from pathlib import Path

import pytest
import torch
from support import tiny

from lorafit.data.batching import build_step_batch
from lorafit.engines.torch import low_bit_linear
from lorafit.planner.schedule import step_samples


@pytest.mark.parametrize(("quantization", "tolerance"), [("4bit", 1e-5), ("8bit", 0.03)])
def test_gradients_through_a_quantised_base_equal_those_through_its_dequantised_weights(
    models: Path, quantization: str, tolerance: float
) -> None:
    """8-bit rounds the inputs too; 4-bit computes exactly with what its weights stand for."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    plan, samples = tiny.make_plan(quantization=quantization), tiny.make_samples(32)
    engine = tiny.open_engine(models / "llama", plan)
    exact = tiny.open_engine(models / "llama", dataclasses.replace(plan, quantization="none"))
    exact.packed = None  # it would keep the weights that are replaced below
    for name, layer in engine.layers.items():
        base = layer.base
        if quantization == "4bit":
            weight = bitsandbytes.functional.dequantize_4bit(base.weight.data, base.weight.quant_state)
        else:
            held = base.weight if base.weight.CB is not None else base.state  # it moves at the first product
            weight = held.CB.float() * held.SCB[:, None] / 127
        assert type(base) is not torch.nn.Linear
        exact.layers[name].base.weight.data = weight.float()
    tiny.fill_b(engine)
    tiny.fill_b(exact)
    data = build_step_batch(samples, step_samples(plan, 1), 100, 4096)
    grads = tiny.gradients(engine, 1, data.micro_batches, data.num_targets)
    wanted = tiny.gradients(exact, 1, data.micro_batches, data.num_targets)
    assert tiny.worst(grads, wanted) < tolerance


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("shape", [(50, 192), (7, 64), (33, 40), (300, 10), (3, 2048)])
def test_rows_of_a_packed_weight_are_unpacked_some_at_a_time(
    shape: tuple[int, int], nested: bool, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight = bitsandbytes.nn.Params4bit(numbers, compress_statistics=nested, quant_type="nf4").to("cpu")
    monkeypatch.setattr(low_bit_linear, "PACKED_BLOCK", 1 << 10)
    assert low_bit_linear._unpack_kernel(weight.quant_state) is not None, (
        "bitsandbytes has its kernel under another name"
    )
    if not in_place:  # as on a GPU, or with a bitsandbytes that has no such kernel
        monkeypatch.setattr(low_bit_linear, "_unpack_kernel", lambda state: None)
    found = [(rows, part.clone()) for rows, part in low_bit_linear.weight_blocks([weight, weight], torch.float32)]
    whole = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    assert torch.equal(torch.cat([part for _rows, part in found]), torch.cat([whole, whole]))
    assert [rows.start for rows, _part in found][1:] == [rows.stop for rows, _part in found][:-1]
    assert len(found) > 2 or shape == (7, 64)


def test_an_8_bit_layer_keeps_no_inputs_which_would_make_recomputing_save_nothing(models: Path) -> None:
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
