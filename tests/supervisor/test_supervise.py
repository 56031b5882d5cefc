"""A run outlives its worker: the worker dies in every way, on the fake engine. Supervisor, pipes and disk are real."""

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
from lorafit.messages import set_language
from lorafit.run_folders.directory import RunDir
from lorafit.supervisor import memory_pressure
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
    """A function that trains for ten steps with `faults` and returns the events of supervise()."""

    def run(*faults: dict[str, Any], **settings: Any) -> list[Event]:
        config = TrainConfig(output_dir=str(tmp_path / "output"), **{**SETTINGS, **settings})
        return list(supervise(config, faulty(*faults), CALM))

    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of ten steps without faults."""
    output = tmp_path_factory.mktemp("undisturbed") / "output"
    list(supervise(TrainConfig(output_dir=str(output), **SETTINGS), faulty(), CALM))
    return run_folder(output)


def run_folder(output: Path) -> RunDir:
    (path,) = output.iterdir()
    return RunDir(path)


def adapter_bytes(run: RunDir) -> bytes:
    return (run.final_model / "adapter_model.safetensors").read_bytes()


def of(kind: type, events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize(
    ("deed", "cause"),
    [("kill", "killed"), ("segfault", "crashed"), ("exit", "vanished"), ("cuda", "cuda"), ("metal", "command_buffer")],
)
def test_after_a_death_the_run_continues_to_the_same_bytes(
    train: Train, undisturbed: RunDir, tmp_path: Path, deed: str, cause: str
) -> None:
    events = train({"step": 6, "deed": deed})
    (restarted,) = of(Restarted, events)
    assert (restarted.cause, restarted.step, restarted.lost_steps) == (cause, 4, 1)
    run = run_folder(tmp_path / "output")
    assert adapter_bytes(run) == adapter_bytes(undisturbed)
    record = read_events(run.events)
    assert [e.step for e in of(StepDone, record)] == list(range(1, 11))
    assert of(Restarted, record) == [restarted]
    assert not of(Failed, events)


# which failures are retried, and how often


def test_a_run_that_dies_at_the_same_step_again_and_again_ends_with_an_error(train: Train, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="killed from outside") as raised:
        train({"step": 6, "deed": "kill", "life": 0})
    run = run_folder(tmp_path / "output")
    record = read_events(run.events)
    assert len(of(Restarted, record)) == 3
    assert isinstance(record[-1], Failed)
    assert str(run.path) == raised.value.where
    assert "--resume" in (raised.value.fix or "")
    events = train(resume="latest")
    assert of(Finished, events)


@pytest.mark.parametrize("step", [0, 4])
def test_a_worker_that_dies_before_it_opens_its_run_is_replaced(
    train: Train, undisturbed: RunDir, tmp_path: Path, step: int
) -> None:
    if step:
        train({"step": step, "deed": "terminate"})
    died = {"life": 2 if step else 1, "step": "start", "deed": "kill"}
    (restarted,) = of(Restarted, train(died, **({"resume": "latest"} if step else {})))
    assert restarted.cause == "killed"
    assert adapter_bytes(run_folder(tmp_path / "output")) == adapter_bytes(undisturbed)


def test_an_error_keeps_its_type_and_texts_and_is_not_retried(train: Train, tmp_path: Path) -> None:
    with pytest.raises(EngineError) as raised:
        train({"step": 3, "deed": "error"})
    error = raised.value
    assert (error.what, error.where, error.found, error.fix) == ("It cannot be.", "here", "this", "Do that.")
    assert not of(Restarted, read_events(run_folder(tmp_path / "output").events))


def test_a_bug_keeps_its_traceback(train: Train) -> None:
    with pytest.raises(RuntimeError, match="of our own") as raised:
        train({"step": 3, "deed": "bug"})
    assert not isinstance(raised.value, LorafitError)
    assert "faulty_worker.py" in str(raised.value.__cause__)
    assert "ZeroDivisionError" in str(raised.value.__cause__)


def test_a_worker_that_hangs_is_killed_and_its_stack_is_kept(train: Train, undisturbed: RunDir, tmp_path: Path) -> None:
    (restarted,) = of(Restarted, train({"step": 6, "deed": "hang"}, hang_seconds=1))
    assert restarted.cause == "hung"
    run = run_folder(tmp_path / "output")
    assert "faulty_worker.py" in run.worker_log.read_text()
    assert adapter_bytes(run) == adapter_bytes(undisturbed)


def test_a_termination_signal_to_the_worker_alone_stops_the_run(train: Train, tmp_path: Path) -> None:
    events = train({"step": 3, "deed": "terminate"})
    assert isinstance(events[-1], Stopped)
    assert [e.step for e in of(Saved, events)] == [2, 3]
    assert of(Finished, train(resume="latest"))


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("fault", [{"step": "start", "deed": "terminate"}, {"step": 1, "deed": "kill", "life": 0}])
def test_the_error_of_a_run_that_saved_nothing_does_not_offer_to_resume_it(
    train: Train, tmp_path: Path, fault: dict[str, Any], language: str
) -> None:
    set_language(language)
    with pytest.raises(EngineError) as caught:
        train(fault)
    set_language("en")
    assert caught.value.fix
    assert "--resume" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert not list((tmp_path / "output").glob("*"))


def test_after_a_gpu_failure_without_an_exception_the_latest_checkpoint_is_deleted(
    train: Train, tmp_path: Path
) -> None:
    (restarted,) = of(Restarted, train({"step": 7, "deed": "metal"}))  # the checkpoint of step 6 may be wrong
    assert restarted.step == 4
    assert METAL in run_folder(tmp_path / "output").worker_log.read_text()


# smaller micro-batches


def test_metals_watchdog_is_first_relaxed_then_given_smaller_micro_batches(train: Train, tmp_path: Path) -> None:
    events = train({"step": 6, "deed": "watchdog"}, {"step": 6, "deed": "watchdog", "life": 2})
    first, second = of(Restarted, events)
    assert first.cause == second.cause == "watchdog"
    assert "AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1" in first.text
    (shrunk,) = of(Shrunk, events)
    assert shrunk.token_budget < 4096
    assert of(Finished, events)


def test_after_an_oom_kill_the_result_is_that_of_a_run_with_smaller_micro_batches_from_that_step_on(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = iter(range(10))
    monkeypatch.setattr(memory_pressure, "oom_kills", lambda: next(count))
    events = train({"step": 6, "deed": "kill"})
    (restarted,) = of(Restarted, events)
    assert restarted.cause == "oom_killer"
    killed = run_folder(tmp_path / "output")
    killed.path.parent.rename(tmp_path / "killed")
    # Out of memory as an exception: the loop halves the budget in the same steps, without a restart.
    events = train({"step": 5, "deed": "memory", "above": 60, "life": 0})
    assert len(of(Shrunk, events)) > 0
    one, other = (
        adapter_bytes(RunDir(p)) for p in (next((tmp_path / "killed").iterdir()), run_folder(tmp_path / "output").path)
    )
    assert one == other


# copied runs and repeated resumes


def test_a_recycled_worker_leaves_no_trace_in_the_result(train: Train, undisturbed: RunDir, tmp_path: Path) -> None:
    events = train(recycle_every=3)
    run = run_folder(tmp_path / "output")
    assert len(of(Resumed, events)) >= 2
    assert not of(Stopped, events)
    assert adapter_bytes(run) == adapter_bytes(undisturbed)


def test_a_copied_run_is_resumed_in_its_new_folder_and_the_old_folder_is_unchanged(
    train: Train, undisturbed: RunDir, tmp_path: Path
) -> None:
    train({"step": 5, "deed": "terminate"})
    old = run_folder(tmp_path / "output")
    moved = tmp_path / "elsewhere" / "under another name"
    shutil.copytree(old.path, moved)
    before = {path: path.read_bytes() for path in old.path.rglob("*") if path.is_file()}
    train(resume=str(moved))
    assert adapter_bytes(RunDir(moved)) == adapter_bytes(undisturbed)
    assert {path: path.read_bytes() for path in old.path.rglob("*") if path.is_file()} == before


def test_a_run_whose_folder_is_moved_just_before_the_worker_dies_is_resumed_in_the_new_place(
    train: Train, undisturbed: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTPUT", str(tmp_path / "output"))
    events = train({"step": 6, "deed": "move"})
    assert [event.step for event in of(Resumed, events)] == [4]
    run = run_folder(tmp_path / "output")
    assert run.name == "moved"
    assert adapter_bytes(run) == adapter_bytes(undisturbed)


def test_a_run_killed_at_five_random_steps_has_the_losses_of_an_undisturbed_run(
    train: Train, undisturbed: RunDir, tmp_path: Path
) -> None:
    steps = sorted(random.Random(8).sample(range(1, 10), 5))
    train(*({"step": step, "deed": "kill", "life": life} for life, step in enumerate(steps, 1)), save_steps=1)
    run = run_folder(tmp_path / "output")
    assert adapter_bytes(run) == adapter_bytes(undisturbed)
    losses, expected = ([e.loss for e in of(StepDone, read_events(r.events))] for r in (run, undisturbed))
    assert losses == expected


def test_when_the_supervisor_is_killed_the_worker_finishes_its_step_saves_and_ends(tmp_path: Path) -> None:
    script = f"""
import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(TESTS)!r}, {str(ROOT)!r}]
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
    run = run_folder(tmp_path / "output")
    with wait_for(run):
        events = read_events(run.events)
    assert isinstance(events[-1], Stopped)
    assert any(isinstance(e, Saved) and e.step == events[-1].step for e in events)


@contextmanager
def wait_for(run: RunDir) -> Iterator[None]:
    """Hold the lock of `run` within the block, as soon as no process writes the run."""
    for _attempt in range(100):
        try:
            with run.lock():
                yield
                return
        except RunError:
            time.sleep(0.1)
    raise AssertionError("the worker did not end in time")
