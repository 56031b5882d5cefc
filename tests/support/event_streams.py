"""Events of a whole run, for the tests of reporters."""

from typing import Any

from lorafit.events import (
    EvalDone,
    Event,
    Finished,
    Planned,
    Saved,
    Stage,
    Started,
    StepDone,
    Warned,
)
from lorafit.units import GIB

START = 1_000_000.0


RUN = "output/llama-lora-20260101_120000"


CHOICES = [
    {"setting": "device", "value": "cpu", "reason": "✓ No GPU found: training on the CPU"},
    {"setting": "steps", "value": "100", "reason": "800 rows, 16 a step, num_epochs 2"},
]


def planned() -> Planned:
    """Return the event of a plan with two choices."""
    return Planned(time=START, choices=CHOICES, predicted_peak_bytes=3 * GIB, available_bytes=16 * GIB)


def started(run: object = RUN, steps: int = 100, step: int = 0) -> Started:
    """Return the event of a started run."""
    return Started(
        time=START, step=step, run=str(run), model="demo", engine="torch", device="cpu", steps=steps,
        train_samples=800, valid_samples=20, trainable_parameters=4_884_480,
    )  # fmt: skip


def step_done(step: int, seconds: float = 4.0, **changes: Any) -> StepDone:
    """Return the event of a finished step; `changes` replace its fields."""
    facts: dict[str, Any] = {
        "loss": 2.0, "target_tokens": 900, "tokens": 1200, "grad_norm": 0.5, "lr": 1e-4, "peak_bytes": 2 * GIB,
        "micro_batches": 2, "epoch": step / 50,
    }  # fmt: skip
    return StepDone(time=START + seconds * step, step=step, seconds=seconds, **(facts | changes))


def finished(step: int = 100) -> Finished:
    """Return the event of a finished run."""
    return Finished(
        step=step,
        seconds=400.0,
        valid_loss_before=2.5,
        valid_loss_after=1.5,
        best_step=80,
        best_loss=1.25,
        path="final_model",
    )


def a_whole_run() -> list[Event]:
    """Return the events of a run of 100 steps, with an evaluation, a checkpoint and a warning after step 50."""
    steps: list[Event] = [step_done(step) for step in range(1, 101)]
    evaluated = EvalDone(step=50, loss=1.75, target_tokens=9000, seconds=3.0, best=True)
    saved = Saved(step=50, path="checkpoints/step-000050", bytes=32 * 2**20, seconds=0.5)
    middle: list[Event] = [evaluated, saved, Warned(step=50, text="the battery is low")]
    return [Stage(text="Loading the model"), planned(), started(), *steps[:50], *middle, *steps[50:], finished()]
