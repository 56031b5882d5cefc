"""A device that the machine lacks, out of memory and a gradient that is not a number end with an error for the user."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.refusals import Refused, Words, the_run

from lorafit.cli.app import main
from lorafit.engines.torch.engine import TorchEngine
from lorafit.events import Failed, read_events
from lorafit.hardware.detect import detect_machine

# the machine


def test_a_device_that_is_not_here_is_named(
    flags: Callable[..., Words], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hides NVIDIA GPUs; nothing hides the GPU of a Mac
    machine = detect_machine()
    missing = [device for device in ("cuda", "mps") if machine.gpu(device) is None]
    assert "cuda" in missing
    for device in missing:
        refused(flags(device=device), device.upper(), machine.chip, "--device cpu")


@pytest.mark.parametrize(
    ("device", "kind", "machine", "chip"),
    [("cuda", "CUDA", "M1 8GB", "Apple M1"), ("mps", "MPS", "RTX 3090", "RTX 3090")],
)
def test_a_device_that_a_described_machine_lacks_is_named(
    flags: Callable[..., Words], refused: Refused, device: str, kind: str, machine: str, chip: str
) -> None:
    _train, *settings = flags(device=device)
    refused(["plan", "--machine", machine, *settings], kind, chip, "--device cpu")


def test_a_precision_that_the_processor_would_emulate_is_refused(flags: Callable[..., Words], refused: Refused) -> None:
    refused(flags(precision="fp16", device="cpu"), "fp16", detect_machine().chip, "--precision fp32")


def test_a_training_tells_the_device_of_the_model(
    flags: Callable[..., Words], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags("--dry_run", lang="en")) == 0
    assert "✓ Model loaded on cpu\n" in capsys.readouterr().out


# memory and gradients


@pytest.fixture
def memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function that makes every micro-batch fail from step `first` on, with the error of a full CUDA memory."""
    real = TorchEngine._accumulate

    def install(first: int) -> None:
        def accumulate(self: TorchEngine, step: int, micro_batches: Any, total_targets: int) -> float:
            if step >= first:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return real(self, step, micro_batches, total_targets)

        monkeypatch.setattr(TorchEngine, "_accumulate", accumulate)

    return install


def test_memory_that_is_too_small_for_one_sample_ends_with_an_error_and_leaves_no_run(
    flags: Callable[..., Words], refused: Refused, memory_runs_out: Callable[[int], None]
) -> None:
    memory_runs_out(1)
    refused(flags(), "2.00 GiB", "--max_length", "--quantization 4bit")


def test_memory_that_runs_out_later_keeps_the_checkpoint_and_names_the_command_to_resume(
    flags: Callable[..., Words],
    memory_runs_out: Callable[[int], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    memory_runs_out(2)
    assert main(flags(save_steps=1, lang="en")) == 2
    text = capsys.readouterr()
    run = the_run(tmp_path / "output")
    assert "--max_length" in text.err
    assert f"resume {run.path}" in text.out
    assert [checkpoint.name for checkpoint in run.checkpoints.iterdir()] == ["step-000001"]
    assert isinstance(read_events(run.events)[-1], Failed)


def test_a_gradient_that_is_not_a_number_ends_with_an_error(
    flags: Callable[..., Words], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(learning_rate=1e30, lr_scheduler="constant", val_size=0, max_steps=4, lang="en")) == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert re.search(r"The gradient of step [234] is not finite", text)
    assert "--learning_rate" in text
    assert isinstance(read_events(the_run(tmp_path / "output").events)[-1], Failed)
