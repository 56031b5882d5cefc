"""Are a device that is not here, memory that runs out and numbers that are none told in words?"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.refusals import Refused, Words, the_run

from lorafit.cli.app import main
from lorafit.engines.torch.engine import TorchEngine
from lorafit.events import Failed, read_events
from lorafit.hardware import detect

# the machine


@pytest.mark.parametrize(("device", "kind"), [("cuda", "CUDA"), ("mps", "MPS")])
def test_a_device_that_is_not_here_is_named(
    flags: Callable[..., Words], refused: Refused, monkeypatch: pytest.MonkeyPatch, device: str, kind: str
) -> None:
    machine = replace(detect.detect_machine(), gpus=(), torch_cuda=None)
    monkeypatch.setattr(detect, "detect_machine", lambda: machine)
    refused(flags(device=device), kind, machine.chip, "--device cpu")


def test_numbers_that_the_processor_would_only_imitate_are_refused(
    flags: Callable[..., Words], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = replace(detect.detect_machine(), gpus=(), torch_cuda=None, cpu_bf16=False)
    monkeypatch.setattr(detect, "detect_machine", lambda: machine)
    refused(flags(precision="fp16"), "fp16", machine.chip, "--precision fp32")


def test_a_training_says_on_which_device_the_model_stands(
    flags: Callable[..., Words], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags("--dry_run", lang="en")) == 0
    assert "✓ Model loaded on cpu\n" in capsys.readouterr().out


# memory and numbers


@pytest.fixture
def memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From the given step on every computation answers as CUDA does when its memory is full."""
    real = TorchEngine._accumulate

    def install(first: int) -> None:
        def accumulate(self: TorchEngine, step: int, micro_batches: Any, total_targets: int) -> float:
            if step >= first:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return real(self, step, micro_batches, total_targets)

        monkeypatch.setattr(TorchEngine, "_accumulate", accumulate)

    return install


def test_memory_that_is_too_small_for_one_sample_ends_with_words_and_leaves_no_run(
    flags: Callable[..., Words], refused: Refused, memory_runs_out: Callable[[int], None]
) -> None:
    memory_runs_out(1)
    refused(flags(), "2.00 GiB", "--max_length", "--quantization 4bit")


def test_memory_that_runs_out_later_keeps_the_checkpoint_and_names_the_command_to_go_on(
    flags: Callable[..., Words],
    memory_runs_out: Callable[[int], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    memory_runs_out(2)
    assert main(flags(save_steps=1, lang="en")) == 2
    seen = capsys.readouterr()
    run = the_run(tmp_path / "output")
    assert "--max_length" in seen.err
    assert f"resume {run.path}" in seen.out
    assert [checkpoint.name for checkpoint in run.checkpoints.iterdir()] == ["step-000001"]
    assert isinstance(read_events(run.events)[-1], Failed)


def test_a_gradient_that_is_no_number_ends_with_words(
    flags: Callable[..., Words], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(learning_rate=1e30, lr_scheduler="constant", val_size=0, max_steps=4, lang="en")) == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert re.search(r"The gradient of step [234] is not a number", text)
    assert "--learning_rate" in text
    assert isinstance(read_events(the_run(tmp_path / "output").events)[-1], Failed)
