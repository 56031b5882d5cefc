"""The memory formula against counted and measured values: Llama-3.2-1B's shape, fp32, one sample of 512 tokens."""

from dataclasses import replace

import pytest
from support.shapes import llama_1b

from lorafit.planner import memory
from lorafit.planner.fast_path import FAST
from lorafit.planner.memory import Layout


def layout(**changes: object) -> Layout:
    base = Layout(
        device="cpu",
        precision="fp32",
        quantization="none",
        optimizer="adamw",
        lora_r=32,
        lora_targets="all-linear",
        tokens=512,
        longest=512,
        recompute=0,
        loss_chunk=64,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_float32_weights_take_what_was_measured() -> None:
    assert memory.weights_bytes(llama_1b(), "fp32", "none") == pytest.approx(4714 * 1024**2, rel=1e-3)


def test_half_precision_takes_half() -> None:
    half, whole = (memory.weights_bytes(llama_1b(), precision, "none") for precision in ("bf16", "fp32"))
    assert half * 2 == whole


def test_quantised_linears_with_what_unpacks_them_and_a_whole_embedding() -> None:
    spec = llama_1b()
    linears = 16 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    embedding = spec.parameters - linears
    scales = linears // 64 + linears // 64 // 256 * 4
    assert memory.weights_bytes(spec, "bf16", "4bit") == linears // 2 + scales + embedding * 2
    assert memory.weights_bytes(spec, "bf16", "8bit") == pytest.approx(linears + embedding * 2, rel=2e-3)


def test_the_adapter_has_as_many_parameters_as_peft_counts() -> None:
    # peft prints 22,544,384 for this model at rank 32 on all seven projections.
    assert memory.adapter_parameters(llama_1b(), 32, "all-linear") == 22_544_384


def test_named_targets_get_an_adapter_and_others_do_not() -> None:
    names = {linear.name for linear in memory.targeted(llama_1b(), "q_proj, mlp.up_proj")}
    assert len(names) == 32
    assert all(name.endswith(("q_proj", "up_proj")) for name in names)


def test_adapter_gradient_and_moments_take_16_bytes_a_parameter_or_10_with_8_bit_moments() -> None:
    assert memory.adapter_bytes(22_544_384, "adamw") == pytest.approx(344 * 1024**2, rel=1e-3)
    assert memory.adapter_bytes(1024, "paged_adamw_8bit") == 1024 * 10 + 4 * 8


def test_a_layer_keeps_the_floats_that_hooks_counted() -> None:
    floats = 4 * 2048 + 4 * 8192 + 7 * 32 + 2 * 32 * 64 + 2 * 8 * 64 + 32 + 2
    assert memory.layer_bytes(llama_1b(), layout()) == 512 * floats * 4


@pytest.mark.parametrize(("recompute", "measured_mb"), [(0, 1598), (16, 224)])
def test_activations_and_loss_come_to_what_was_measured(recompute: int, measured_mb: int) -> None:
    spec, plan = llama_1b(), layout(recompute=recompute)
    predicted = sum(memory.activation_peak(spec, plan))
    # The prediction may be higher by one layer's gradients: in the measurement they may have reused freed memory.
    measured = measured_mb * 1024**2
    assert measured <= predicted <= measured + 1.2 * memory.layer_bytes(spec, plan)


def test_each_recomputed_layer_saves_memory() -> None:
    sizes = [memory.peak_bytes(llama_1b(), layout(recompute=layers)) for layers in range(17)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 17


def test_on_the_fast_path_each_recomputed_layer_but_the_last_saves_memory() -> None:
    sizes = [
        memory.peak_bytes(llama_1b(), layout(recompute=layers, path=FAST, target_share=0.7)) for layers in range(17)
    ]
    assert sizes[:16] == sorted(sizes[:16], reverse=True)
    assert sizes[16] > sizes[15]


def test_attention_weights_are_kept_on_mps_alone_and_grow_with_the_longest_sample() -> None:
    spec = llama_1b()
    assert memory.attention_bytes(spec, layout(device="cuda")) == 0
    assert memory.attention_bytes(spec, layout(device="mps")) == 32 * 512 * 512 * 4
    assert memory.attention_bytes(spec, layout(device="mps", longest=256)) == 32 * 512 * 256 * 4


def test_the_peak_is_the_sum_of_its_terms_and_unpacking_counts_only_when_quantised() -> None:
    spec = llama_1b()
    assert memory.peak_bytes(spec, layout()) == sum(memory.terms(spec, layout()).values())
    assert memory.terms(spec, layout())["unpacking"] == 0
    assert memory.terms(spec, layout(quantization="4bit"))["unpacking"] == 2048 * 8192 * 4
    assert memory.terms(spec, layout(quantization="4bit", path=FAST))["unpacking"] < 2048 * 8192 * 4
