"""Command lines of small trainings, and trainings in processes of their own."""

import subprocess
import sys
import time
from pathlib import Path

from lorafit.events import StepDone, read_events

SETTINGS: dict[str, object] = {
    "dataset_name": "demo", "max_samples": 40, "max_length": 96, "effective_batch": 4, "lora_r": 4, "lora_dropout": 0.1,
    "lang": "en",
}  # fmt: skip


def train_flags(model: Path, output: Path, **settings: object) -> list[str]:
    """Return the flags of a training of `model` in the folder `output`; `settings` add to SETTINGS or replace them."""
    named = {**SETTINGS, "model_name": model, "output_dir": output, **settings}
    return [word for name, value in named.items() for word in (f"--{name}", str(value))]


def start_training(words: list[str]) -> subprocess.Popen[str]:
    """Start `lorafit train` with the flags `words`."""
    command = [sys.executable, "-m", "lorafit", "train", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_folder(output: Path) -> Path:
    """Return the only run in the folder `output`."""
    (path,) = output.iterdir()
    return path


def wait_for_step(output: Path, step: int) -> None:
    """Wait until the only run in the folder `output` has completed `step`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        paths = list(output.glob("*/events.jsonl"))
        if paths and any(isinstance(e, StepDone) and e.step >= step for e in read_events(paths[0])):
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached in time")
