"""Does it matter how often a run is stopped, or memory runs out? A real model: losses and adapter are the straight run's.

By the law's two measures, and to the byte where nothing was computed otherwise. In a slow test the demo model itself.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support import tiny

from lorafit.config import TrainConfig
from lorafit.engines.torch.engine import TorchEngine
from lorafit.events import Event, Resumed, Shrunk, StepDone, read_events
from lorafit.ipc.link import Link
from lorafit.ipc.protocol import Order
from lorafit.run_folders.directory import RunDir
from lorafit.training.worker import train_in_process

STEPS, SHRINKS = 16, (3, 7, 12)
LOSSES, B_MATRICES = 1e-5, 1e-3  # the law's measures
Base = tuple[Path, str]  # a model's folder, and where its runs lie


def trained(base: Base, name: str, tell: Callable[[Event, Link], None] = lambda _event, _link: None) -> RunDir:
    """A run to its end, resumed as often as it stops; `tell` gives orders after an event."""
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
            tell(event, link)
    return RunDir(next(output.iterdir()))


def losses(run: RunDir) -> list[float]:
    return [event.loss for event in read_events(run.events) if isinstance(event, StepDone)]


def adapter(run: RunDir) -> Path:
    return run.final_model / "adapter_model.safetensors"


def b_distance(one: RunDir, other: RunDir) -> float:
    """Norm of the difference of all B matrices over their norm."""
    ours, theirs = (
        np.concatenate([tensor.ravel() for name, tensor in sorted(load_file(adapter(run)).items()) if "lora_B" in name])
        for run in (one, other)
    )
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@contextmanager
def memory_runs_out(at: tuple[int, ...]) -> Iterator[None]:
    """Once in each step of `at`, with all gradients there and nothing updated yet."""
    real_step, real_clip, now, left = TorchEngine.step, TorchEngine._clip, [0], set(at)

    def step(engine: TorchEngine, number: int, *words: object) -> object:
        now[0] = number
        return real_step(engine, number, *words)  # type: ignore[arg-type]

    def clip(engine: TorchEngine, norm: float) -> None:
        if now[0] in left:
            left.remove(now[0])
            raise torch.OutOfMemoryError("CUDA out of memory.")
        real_clip(engine, norm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchEngine, "step", step)
        patch.setattr(TorchEngine, "_clip", clip)
        yield
    assert not left


@pytest.fixture(scope="module", params=["tiny", pytest.param("demo", marks=pytest.mark.slow)])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    demo: Path = request.getfixturevalue("demo_folder")
    model = demo if request.param == "demo" else tiny.save_chat_model(tmp_path_factory.mktemp("tiny"), demo)
    return model, str(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def straight(base: Base) -> RunDir:
    return trained(base, "straight")


def test_resumed_ten_times_at_random_steps_it_ends_with_the_bytes_of_the_straight_run(
    base: Base, straight: RunDir
) -> None:
    stops = random.Random(20261124).sample(range(1, STEPS), 10)

    def stop(event: Event, link: Link) -> None:
        if isinstance(event, StepDone) and event.step in stops:
            link.take(Order("stop", 15))

    run = trained(base, "resumed", stop)
    assert sum('"resumed"' in line for line in run.events.read_text().splitlines()) == 10
    assert [e for e in read_events(run.events) if isinstance(e, Resumed)]
    assert losses(run) == losses(straight)
    assert adapter(run).read_bytes() == adapter(straight).read_bytes()


def test_with_memory_that_runs_out_three_times_it_learns_the_same_and_as_one_that_was_told_to_take_less(
    base: Base, straight: RunDir
) -> None:
    with memory_runs_out(SHRINKS):
        run = trained(base, "short of memory")
    shrunk = [event for event in read_events(run.events) if isinstance(event, Shrunk)]
    assert len(shrunk) == 3
    assert len(losses(run)) == STEPS
    assert losses(run) == pytest.approx(losses(straight), rel=LOSSES)
    assert b_distance(run, straight) < B_MATRICES

    def shrink(event: Event, link: Link) -> None:
        if isinstance(event, StepDone) and event.step + 1 in SHRINKS:
            link.take(Order("shrink"))

    told = trained(base, "told", shrink)
    assert [(e.step, e.token_budget, e.recompute) for e in read_events(told.events) if isinstance(e, Shrunk)] == [
        (e.step, e.token_budget, e.recompute) for e in shrunk
    ]
    assert losses(told) == losses(run)
    assert adapter(told).read_bytes() == adapter(run).read_bytes()
