"""A run that stops often or runs out of memory gives the losses and the adapter of a run that does neither.

The adapters are equal to the byte if both runs compute the same, else within LOSSES and B_MATRICES. The model is a tiny
one, and in the slow tests the demo model.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support import tiny

from lorafit import registry
from lorafit.config import TrainConfig
from lorafit.data.micro_batch import MicroBatch
from lorafit.engines.base import Setup, StepResult
from lorafit.engines.torch.engine import TorchEngine
from lorafit.events import Event, Resumed, Shrunk, StepDone, read_events
from lorafit.ipc.link import Link
from lorafit.ipc.protocol import Order
from lorafit.run_folders.directory import RunDir
from lorafit.training.worker import train_in_process

STEPS, SHRINKS = 16, (3, 7, 12)
LOSSES, B_MATRICES = 1e-5, 1e-3  # relative tolerances of two runs that are split differently
Base = tuple[Path, str]  # a model's folder, and where its runs lie


def train(base: Base, name: str, on_event: Callable[[Event, Link], None] = lambda _event, _link: None) -> RunDir:
    """Train to the end and resume after each stop. `on_event` may send orders to the link after each event."""
    output = Path(base[1]) / name
    settings = TrainConfig(
        model_name=str(base[0]), dataset_name="demo", max_samples=40, max_length=64, max_steps=STEPS, effective_batch=4,
        save_steps=1000, eval_steps=5, lora_r=4, lora_dropout=0.1, output_dir=str(output), no_preflight=True,
        token_budget=4096,
    )  # fmt: skip
    while not list(output.glob("*/final_model")):
        link = Link()
        resume = {"resume": "latest"} if output.exists() else {}
        for event in train_in_process(settings.model_copy(update=resume), link):
            on_event(event, link)
    return RunDir(next(output.iterdir()))


def losses(run: RunDir) -> list[float]:
    return [event.loss for event in read_events(run.events) if isinstance(event, StepDone)]


def adapter(run: RunDir) -> Path:
    return run.final_model / "adapter_model.safetensors"


def b_distance(one: RunDir, other: RunDir) -> float:
    """Return the norm of the difference of all B matrices, over the norm of the other run's."""
    ours, theirs = (
        np.concatenate([tensor.ravel() for name, tensor in sorted(load_file(adapter(run)).items()) if "lora_B" in name])
        for run in (one, other)
    )
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


class ShortOfMemory(TorchEngine):
    """An engine that runs out of memory once in each step of SHRINKS, after the gradients and before the update."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.current_step, self.steps_left = 0, set(SHRINKS)

    def step(self, step: int, micro_batches: Sequence[MicroBatch], total_targets: int, lr: float) -> StepResult:
        self.current_step = step
        return super().step(step, micro_batches, total_targets, lr)

    def _clip(self, norm: float) -> None:
        if self.current_step in self.steps_left:
            self.steps_left.remove(self.current_step)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        super()._clip(norm)


@pytest.fixture(scope="module", params=["tiny", pytest.param("demo", marks=pytest.mark.slow)])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The base model, and the folder of the runs on it."""
    demo: Path = request.getfixturevalue("demo_folder")
    model = demo if request.param == "demo" else tiny.save_chat_model(tmp_path_factory.mktemp("tiny"), demo)
    return model, str(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def straight(base: Base) -> RunDir:
    """A run without stops that has enough memory."""
    return train(base, "straight")


def test_resumed_ten_times_at_random_steps_it_ends_with_the_bytes_of_the_straight_run(
    base: Base, straight: RunDir
) -> None:
    stops = random.Random(20261124).sample(range(1, STEPS), 10)

    def stop(event: Event, link: Link) -> None:
        if isinstance(event, StepDone) and event.step in stops:
            link.take(Order("stop", 15))

    run = train(base, "resumed", stop)
    assert sum('"resumed"' in line for line in run.events.read_text().splitlines()) == 10
    assert [e for e in read_events(run.events) if isinstance(e, Resumed)]
    assert losses(run) == losses(straight)
    assert adapter(run).read_bytes() == adapter(straight).read_bytes()


def test_out_of_memory_three_times_gives_the_same_result_as_orders_to_use_less(
    base: Base, straight: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(registry.ENGINES, "torch", registry.Entry(f"{__name__}:ShortOfMemory", ""))
        run = train(base, "short of memory")
    shrunk = [event for event in read_events(run.events) if isinstance(event, Shrunk)]
    assert [event.step + 1 for event in shrunk] == list(SHRINKS)
    assert len(losses(run)) == STEPS
    assert losses(run) == pytest.approx(losses(straight), rel=LOSSES)
    assert b_distance(run, straight) < B_MATRICES

    def shrink(event: Event, link: Link) -> None:
        if isinstance(event, StepDone) and event.step + 1 in SHRINKS:
            link.take(Order("shrink"))

    ordered = train(base, "ordered", shrink)
    assert [(e.step, e.token_budget, e.recompute) for e in read_events(ordered.events) if isinstance(e, Shrunk)] == [
        (e.step, e.token_budget, e.recompute) for e in shrunk
    ]
    assert losses(ordered) == losses(run)
    assert adapter(ordered).read_bytes() == adapter(run).read_bytes()
