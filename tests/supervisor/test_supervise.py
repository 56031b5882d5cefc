"""Does a run outlive its process? Workers that die in every way, on the fake engine; the supervisor, pipes and disk are real."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.faulty_worker import METAL
from support.paths import ROOT, SUPPORT, TESTS

from lorafit.config import TrainConfig
from lorafit.errors import EngineError, LorafitError, RunError
from lorafit.events import Event, Failed, Finished, Restarted, Resumed, Saved, Shrunk, StepDone, Stopped, read_events
from lorafit.run_folders.directory import RunDir
from lorafit.supervisor.clock_drift import Clocks
from lorafit.supervisor.monitor import Sensors
from lorafit.supervisor.supervise import supervise

CALM = Sensors(battery=lambda: None, heat=lambda: None, clocks=lambda: Clocks(0, 0, 0))
SETTINGS: dict[str, Any] = {"save_steps": 2, "max_steps": 10, "effective_batch": 16}
Train = Callable[..., list[Event]]


def faulty(*faults: dict[str, Any]) -> list[str]:
    return [sys.executable, str(SUPPORT / "faulty_worker.py"), json.dumps(faults)]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Train for ten steps with faults; the events that a face sees."""

    def go(*faults: dict[str, Any], **settings: Any) -> list[Event]:
        config = TrainConfig(output_dir=str(tmp_path / "output"), **{**SETTINGS, **settings})
        return list(supervise(config, faulty(*faults), CALM))

    return go


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    output = tmp_path_factory.mktemp("undisturbed") / "output"
    list(supervise(TrainConfig(output_dir=str(output), **SETTINGS), faulty(), CALM))
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


# what is taken, and for how long


def test_a_run_that_dies_at_the_same_step_again_and_again_ends_with_words(train: Train, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="killed from outside") as raised:
        train({"step": 6, "deed": "kill", "life": 0})
    run = the_run(tmp_path / "output")
    record = read_events(run.events)
    assert len(of(Restarted, record)) == 3
    assert isinstance(record[-1], Failed)
    assert str(run.path) == raised.value.where
    assert "--resume" in (raised.value.fix or "")
    events = train(resume="latest")
    assert of(Finished, events)


@pytest.mark.parametrize("step", [0, 4])
def test_a_worker_that_dies_before_it_has_taken_up_its_run_is_followed_by_another(
    train: Train, undisturbed: RunDir, tmp_path: Path, step: int
) -> None:
    if step:
        train({"step": step, "deed": "terminate"})
    died = {"life": 2 if step else 1, "step": "start", "deed": "kill"}
    (restarted,) = of(Restarted, train(died, **({"resume": "latest"} if step else {})))
    assert restarted.cause == "killed"
    assert adapter(the_run(tmp_path / "output")) == adapter(undisturbed)


def test_an_error_keeps_its_kind_and_words_and_is_not_tried_again(train: Train, tmp_path: Path) -> None:
    with pytest.raises(EngineError) as raised:
        train({"step": 3, "deed": "error"})
    error = raised.value
    assert (error.what, error.where, error.found, error.fix) == ("It cannot be.", "here", "this", "Do that.")
    assert not of(Restarted, read_events(the_run(tmp_path / "output").events))


def test_a_bug_keeps_its_traceback(train: Train) -> None:
    with pytest.raises(RuntimeError, match="of our own") as raised:
        train({"step": 3, "deed": "bug"})
    assert not isinstance(raised.value, LorafitError)
    assert "faulty_worker.py" in str(raised.value.__cause__)
    assert "ZeroDivisionError" in str(raised.value.__cause__)


def test_a_worker_that_hangs_is_ended_and_where_it_hung_is_kept(
    train: Train, undisturbed: RunDir, tmp_path: Path
) -> None:
    (restarted,) = of(Restarted, train({"step": 6, "deed": "hang"}, hang_seconds=1))
    assert restarted.cause == "hung"
    run = the_run(tmp_path / "output")
    assert "faulty_worker.py" in run.worker_log.read_text()
    assert adapter(run) == adapter(undisturbed)


def test_who_ends_the_worker_alone_has_stopped_the_run(train: Train, tmp_path: Path) -> None:
    events = train({"step": 3, "deed": "terminate"})
    assert isinstance(events[-1], Stopped)
    assert [e.step for e in of(Saved, events)] == [2, 3]
    assert of(Finished, train(resume="latest"))


def test_work_that_failed_without_a_word_is_thrown_away_with_what_was_saved_of_it(train: Train, tmp_path: Path) -> None:
    (restarted,) = of(Restarted, train({"step": 7, "deed": "metal"}))  # step 6 was saved, and may have been garbage
    assert restarted.step == 4
    assert METAL in the_run(tmp_path / "output").worker_log.read_text()


# less at a time


def test_metals_watchdog_is_first_asked_to_wait_then_given_less(train: Train, tmp_path: Path) -> None:
    events = train({"step": 6, "deed": "watchdog"}, {"step": 6, "deed": "watchdog", "life": 2})
    first, second = of(Restarted, events)
    assert first.cause == second.cause == "watchdog"
    assert "AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1" in first.text
    (shrunk,) = of(Shrunk, events)
    assert shrunk.token_budget < 4096
    assert of(Finished, events)


def test_when_the_system_kills_for_memory_the_run_goes_on_as_one_that_took_less_from_that_step_on(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = iter(range(10))
    monkeypatch.setattr("lorafit.supervisor.memory_pressure.oom_kills", lambda: next(count))
    events = train({"step": 6, "deed": "kill"})
    (restarted,) = of(Restarted, events)
    assert restarted.cause == "oom_killer"
    killed = the_run(tmp_path / "output")
    killed.path.parent.rename(tmp_path / "killed")
    events = train(
        {"step": 5, "deed": "memory", "above": 60, "life": 0}
    )  # in the process: the same budgets, step by step
    assert len(of(Shrunk, events)) > 0
    one, other = (
        adapter(RunDir(p)) for p in (next((tmp_path / "killed").iterdir()), the_run(tmp_path / "output").path)
    )
    assert one == other


# moving, and many ends


def test_a_recycled_worker_leaves_no_trace_in_the_result(train: Train, undisturbed: RunDir, tmp_path: Path) -> None:
    events = train(recycle_every=3)
    run = the_run(tmp_path / "output")
    assert len(of(Resumed, events)) >= 2
    assert not of(Stopped, events)
    assert adapter(run) == adapter(undisturbed)


def test_a_run_that_was_copied_elsewhere_goes_on_there_and_the_old_place_is_not_touched(
    train: Train, undisturbed: RunDir, tmp_path: Path
) -> None:
    train({"step": 5, "deed": "terminate"})
    old = the_run(tmp_path / "output")
    moved = tmp_path / "elsewhere" / "under another name"
    shutil.copytree(old.path, moved)
    before = {path: path.read_bytes() for path in old.path.rglob("*") if path.is_file()}
    train(resume=str(moved))
    assert adapter(RunDir(moved)) == adapter(undisturbed)
    assert {path: path.read_bytes() for path in old.path.rglob("*") if path.is_file()} == before


def test_resumed_again_and_again_at_random_steps_the_losses_are_those_of_the_straight_run(
    train: Train, undisturbed: RunDir, tmp_path: Path
) -> None:
    steps = sorted(random.Random(8).sample(range(1, 10), 5))
    train(*({"step": step, "deed": "kill", "life": life} for life, step in enumerate(steps, 1)), save_steps=1)
    run = the_run(tmp_path / "output")
    assert adapter(run) == adapter(undisturbed)
    losses, wanted = ([e.loss for e in of(StepDone, read_events(r.events))] for r in (run, undisturbed))
    assert losses == wanted


def test_when_the_supervisor_is_killed_the_worker_finishes_its_step_saves_and_ends(tmp_path: Path) -> None:
    script = f"""
import sys; sys.path[:0] = [{str(TESTS)!r}, {str(ROOT)!r}]
from lorafit.config import TrainConfig
from lorafit.supervisor.supervise import supervise
import os, signal, test_supervise as t
settings = {{**t.SETTINGS, "save_steps": 1000, "max_steps": 1000}}
for event in supervise(TrainConfig(output_dir={str(tmp_path / "output")!r}, **settings), t.faulty(), t.CALM):
    if event.name == "step" and event.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "SECONDS": "0.05"}, timeout=60)
    assert done.returncode == -signal.SIGKILL
    run = the_run(tmp_path / "output")
    with wait_for(run):
        events = read_events(run.events)
    assert isinstance(events[-1], Stopped)
    assert any(isinstance(e, Saved) and e.step == events[-1].step for e in events)


@contextmanager
def wait_for(run: RunDir) -> Iterator[None]:
    """As soon as nobody writes `run` any more."""
    for _attempt in range(100):
        try:
            with run.lock():
                yield
                return
        except RunError:
            time.sleep(0.1)
    raise AssertionError("the worker never ended")
