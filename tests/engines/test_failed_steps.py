"""A step that fails (out of memory, a loss that is not a number, an fp16 overflow) leaves the engine unchanged."""

import dataclasses
import weakref
from pathlib import Path

import pytest
import torch
from support import tiny
from torch import Tensor, nn
from transformers.utils import ModelOutput

from lorafit.data.batching import build_step_batch
from lorafit.engines.base import OutOfMemory
from lorafit.engines.torch import device
from lorafit.engines.torch.model_class import decoder_of
from lorafit.errors import EngineError
from lorafit.planner.schedule import step_samples


def test_when_memory_runs_out_nothing_of_the_pass_stays_behind(models: Path) -> None:
    plan, samples = tiny.make_plan(lora_dropout=0.1), tiny.make_samples(32)
    engine = tiny.open_engine(models / "gemma2", plan)
    data = build_step_batch(samples, step_samples(plan, 1), 64, 4096)
    before = engine.evaluate(data.micro_batches)
    hidden: list[weakref.ref[Tensor]] = []

    def no_memory(_grad: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def fail_in_the_backward_pass(_decoder: nn.Module, _inputs: object, output: ModelOutput) -> None:
        hidden.append(weakref.ref(output.last_hidden_state))
        output.last_hidden_state.register_hook(no_memory)

    hook = decoder_of(engine.model).register_forward_hook(fail_in_the_backward_pass)
    with pytest.raises(OutOfMemory) as error:
        engine.step(1, data.micro_batches, data.num_targets, 1e-3)
    assert [ref() for ref in hidden] == [None], f"kept by the frames of {error.value!r}"
    engine.release()
    hook.remove()
    assert engine.evaluate(data.micro_batches) == before


@pytest.mark.parametrize("text", ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
                                  "Invalid buffer size: 9.00 GiB", "Insufficient Memory (00000008:kIOGPU...)"])  # fmt: skip
def test_what_backends_say_when_memory_runs_out_is_understood(text: str) -> None:
    with pytest.raises(OutOfMemory), device.translated(device.DEVICES["cpu"]):
        raise RuntimeError(text)


def test_a_loss_that_is_not_a_number_ends_the_run_and_touches_nothing(models: Path) -> None:
    plan, samples = tiny.make_plan(), tiny.make_samples(32)
    engine = tiny.open_engine(models / "llama", plan)
    layer = next(iter(engine.layers.values()))
    with torch.no_grad():
        layer.lora_B[0, 0] = float("nan")
    data = build_step_batch(samples, step_samples(plan, 1), 64, 4096)
    with pytest.raises(EngineError):
        engine.step(1, data.micro_batches, data.num_targets, 1e-3)


def test_fp16_overflow_halves_the_scale_and_computes_the_same_step_again(models: Path) -> None:
    plan, samples = tiny.make_plan(precision="fp16"), tiny.make_samples(32)
    engine = tiny.open_engine(models / "llama", plan)
    exact = tiny.open_engine(models / "llama", dataclasses.replace(plan, precision="fp32"))
    engine.scale.value = 2.0**40
    data = build_step_batch(samples, step_samples(plan, 1), 64, 4096)
    result = engine.step(1, data.micro_batches, data.num_targets, 1e-3)
    wanted = exact.step(1, data.micro_batches, data.num_targets, 1e-3)
    assert engine.scale.value < 2.0**40
    assert result.loss_sum == pytest.approx(wanted.loss_sum, rel=1e-2)
    assert result.grad_norm == pytest.approx(wanted.grad_norm, rel=5e-2)
