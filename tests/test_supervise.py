"""Does a run outlive its process? Workers that die in every way, on the fake engine; the supervisor, pipes and disk are real."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorafit.config import TrainConfig
from lorafit.events import Event, Failed, Restarted, StepDone, read_events
from lorafit.rundir import RunDir
from lorafit.supervise import supervise
from lorafit.watch.care import Senses
from lorafit.watch.clock import Clocks

HERE = Path(__file__).parent
CALM = Senses(battery=lambda: None, heat=lambda: None, clocks=lambda: Clocks(0, 0, 0))
Train = Callable[..., list[Event]]


def faulty(*faults: dict[str, Any]) -> list[str]:
    return [sys.executable, str(HERE / "faulty.py"), json.dumps(faults)]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Train for ten steps with faults; the events that a face sees."""

    def go(*faults: dict[str, Any], **settings: Any) -> list[Event]:
        config = TrainConfig(output_dir=str(tmp_path / "output"), **{"save_steps": 2, "max_steps": 10, **settings})
        return list(supervise(config, faulty(*faults), CALM))

    return go


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    output = tmp_path_factory.mktemp("undisturbed") / "output"
    list(supervise(TrainConfig(output_dir=str(output), save_steps=2, max_steps=10), faulty(), CALM))
    return the_run(output)


def the_run(output: Path) -> RunDir:
    (path,) = output.iterdir()
    return RunDir(path)


def adapter(run: RunDir) -> bytes:
    return (run.final_model / "adapter_model.safetensors").read_bytes()


def of(kind: type, events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize(
    ("deed", "cause"),
    [("kill", "killed"), ("segfault", "crashed"), ("exit", "vanished"), ("cuda", "cuda"), ("metal", "command_buffer")],
)
def test_after_a_death_the_run_goes_on_to_the_same_bytes(
    train: Train, undisturbed: RunDir, tmp_path: Path, deed: str, cause: str
) -> None:
    events = train({"step": 6, "deed": deed})
    (restarted,) = of(Restarted, events)
    assert (restarted.cause, restarted.step, restarted.lost_steps) == (cause, 4, 1)
    run = the_run(tmp_path / "output")
    assert adapter(run) == adapter(undisturbed)
    record = read_events(run.events)
    assert [e.step for e in of(StepDone, record)] == list(range(1, 11))
    assert of(Restarted, record) == [restarted]
    assert not of(Failed, events)
