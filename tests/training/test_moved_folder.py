"""A run's folder is moved while the training loop writes into it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from support import plans
from support.fake_jobs import adapter_bytes, make_job, of

from lorafit.errors import RunError
from lorafit.events import EvalDone, Finished, Moved, Saved
from lorafit.run_folders.checkpoint import latest_good, step_of
from lorafit.run_folders.place import RunPlace
from lorafit.training.loop import Job, Progress, training_loop

PLAN = plans.make_plan(eval_steps=3, save_steps=2, valid_samples=8)


@dataclass
class At:
    """A wrapper that calls `deed` after the call number `number` of a function."""

    number: int
    deed: Callable[[], Any]
    calls: int = field(default=0)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            result = function(*args)
            self.calls += 1
            if self.calls == self.number:
                self.deed()
            return result

        return call


def job_in(folder: Path) -> Job:
    job = make_job(folder, PLAN)
    return replace(job, place=RunPlace(folder))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = job_in(tmp_path_factory.mktemp("undisturbed") / "run")
    list(training_loop(job, Progress()))
    return job


@pytest.mark.parametrize(
    ("function", "number"),
    [("step", 4), ("evaluate", 2), ("save_adapter", 1), ("save", 2), ("evaluate", 5), ("save", 5), ("save_adapter", 5)],
)
def test_a_folder_that_is_moved_while_it_is_written_has_the_whole_result_in_its_new_place(
    tmp_path: Path, undisturbed: Job, monkeypatch: pytest.MonkeyPatch, function: str, number: int
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    job = job_in(old)
    move = At(number, lambda: old.rename(new))
    monkeypatch.setattr(job.engine, function, move(getattr(job.engine, function)))
    events = list(training_loop(job, Progress()))
    assert move.calls >= number
    assert [event.run for event in of(Moved, events)] == [str(new)]
    assert list(tmp_path.iterdir()) == [new], "nothing is written to a folder of the old name"
    assert not list(new.rglob(".*"))
    assert [e.step for e in of(Saved, events)] == [2, 4, 6, 8, 10]
    assert [e.step for e in of(EvalDone, events)] == [0, 3, 6, 9, 10]
    assert len(of(Finished, events)) == 1
    for name in ("final_model", "best_model"):
        assert adapter_bytes(new / name) == adapter_bytes(undisturbed.run.path / name)
    good, bad = latest_good(job.run)
    assert good is not None
    assert (step_of(good), bad) == (10, [])


def test_a_folder_that_is_deleted_while_it_is_written_ends_the_run_with_the_adapter_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_in(tmp_path / "run")
    delete = At(2, lambda: shutil.rmtree(tmp_path / "run"))
    monkeypatch.setattr(job.engine, "save", delete(job.engine.save))
    with pytest.raises(RunError, match="deleted during the training"):
        list(training_loop(job, Progress()))
    (rescued,) = tmp_path.iterdir()
    assert adapter_bytes(rescued)
    assert step_of(rescued) == 4
