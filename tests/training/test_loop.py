"""Tests of the training loop with the fake engine: steps, evaluations, checkpoints, stops and out of memory."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support import plans
from support.fake_jobs import SAMPLES, adapter_bytes, make_job, of

from lorafit.data.micro_batch import MicroBatch, Sample
from lorafit.engines.base import LossSum, OutOfMemory
from lorafit.engines.fake import FakeEngine
from lorafit.events import (
    AdapterChecked,
    Continued,
    EvalDone,
    Evaluating,
    Event,
    Finished,
    Paused,
    Saved,
    Shrunk,
    StepDone,
    Stopped,
)
from lorafit.ipc.link import BEAT, Link
from lorafit.ipc.protocol import Message, Order
from lorafit.planner.schedule import step_samples
from lorafit.run_folders.checkpoint import latest_good, verify
from lorafit.training.loop import Progress, training_loop


def test_a_run_steps_evaluates_saves_and_finishes(tmp_path: Path) -> None:
    plan = plans.make_plan(eval_steps=3, save_steps=4, valid_samples=8)
    job = make_job(tmp_path, plan)
    events = list(training_loop(job, Progress()))
    assert [e.step for e in of(StepDone, events)] == list(range(1, 11))
    assert [e.step for e in of(EvalDone, events)] == [0, 3, 6, 9, 10]
    assert [e.step for e in of(Saved, events)] == [4, 8, 10]
    assert sorted(p.name for p in job.run.checkpoints.iterdir()) == ["step-000008", "step-000010"]
    (finished,) = of(Finished, events)
    assert finished.valid_loss_before is not None
    assert finished.valid_loss_after is not None
    assert finished.valid_loss_after < finished.valid_loss_before
    assert finished.best_loss == min(e.loss for e in of(EvalDone, events)[1:])
    assert adapter_bytes(job.run.final_model) == adapter_bytes(job.run.checkpoints / "step-000010")
    assert adapter_bytes(job.run.best_model)
    assert of(StepDone, events)[-1].epoch == 5.0


def test_evaluation_progress_is_sent_to_the_supervisor_and_not_logged(tmp_path: Path) -> None:
    sent: list[Message] = []
    events = list(
        training_loop(make_job(tmp_path, plans.make_plan(valid_samples=8), link=Link(sent.append)), Progress())
    )
    assert isinstance(sent[0], Evaluating)
    assert (sent[0].rows, sent[0].share) == (8, 0.0)
    assert of(Evaluating, events) == []


def test_without_a_validation_set_nothing_is_evaluated_and_nothing_is_best(tmp_path: Path) -> None:
    job = replace(make_job(tmp_path, plans.make_plan()), valid_set=[])
    events = list(training_loop(job, Progress()))
    assert of(EvalDone, events) == []
    assert of(Finished, events)[0].valid_loss_after is None
    assert not job.run.best_model.exists()


class RecordingSamples:
    """Samples that record the indices that are read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> Sample:
        self.read.append(index)
        return SAMPLES[index]


def test_a_step_reads_its_own_samples_only_and_reports_how_long_it_waited_for_them(tmp_path: Path) -> None:
    plan = plans.make_plan(effective_batch=4, steps=3, num_epochs=1.0)
    samples, done = RecordingSamples(), []
    job = replace(make_job(tmp_path, plan), train_set=samples, valid_set=[])
    for event in training_loop(job, Progress()):
        if isinstance(event, StepDone):
            assert sorted(samples.read) == sorted(step_samples(plan, event.step))
            samples.read.clear()
            assert 0 < event.data_seconds <= event.seconds
            done.append(event)
        elif isinstance(event, Finished):
            assert event.data_seconds == pytest.approx(sum(step.data_seconds for step in done))


def test_a_pause_saves_waits_and_gives_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plans.make_plan(eval_steps=2, valid_samples=8)
    whole = make_job(tmp_path / "whole", plan)
    expected = list(training_loop(whole, Progress()))
    events: list[Event] = []
    link = Link()
    waits: list[Order | None] = [None, Order("pause", text="again"), None, Order("go_on", text="on")]

    def wait(_seconds: float) -> None:
        assert len(of(StepDone, events)) == 3, "no step while paused"
        if order := waits.pop(0):
            link.take(order)

    monkeypatch.setattr("lorafit.training.loop.time.sleep", wait)
    job = make_job(tmp_path / "paused", plan, link=link)
    for event in training_loop(job, Progress()):
        events.append(event)
        if isinstance(event, StepDone) and event.step == 3:
            link.take(Order("pause", text="pause"))
    assert waits == []
    (at,) = [index for index, event in enumerate(events) if isinstance(event, Saved) and event.step == 3]
    shown = [(type(event), event.text) for event in events if isinstance(event, Paused | Continued)]
    assert shown == [(Paused, "pause"), (Paused, "again"), (Continued, "on")]
    assert all(isinstance(event, Paused | Continued) for event in events[at + 1 : at + 4]), (
        "saved before Paused is said"
    )
    assert [(e.step, e.loss) for e in of(StepDone, events)] == [(e.step, e.loss) for e in of(StepDone, expected)]
    assert adapter_bytes(job.run.final_model) == adapter_bytes(whole.run.final_model)


def test_a_paused_run_that_is_stopped_saves_once_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link()
    monkeypatch.setattr("lorafit.training.loop.time.sleep", lambda _seconds: link.take(Order("stop", signal=15)))
    link.take(Order("pause", text="pause"))
    job = make_job(tmp_path / "run", plans.make_plan(valid_samples=8), link=link)
    events = list(training_loop(job, Progress()))
    assert [type(event) for event in events[-3:]] == [Saved, Paused, Stopped]
    assert [event.step for event in events[-3:]] == [1, 1, 1]


class AskedTwice(Link):
    """A link whose user asks for haste at the access number `at` to a micro-batch."""

    def __init__(self, at: int) -> None:
        super().__init__(self._count)
        self.accesses, self.at = 0, at

    def _count(self, _message: Message) -> None:
        pass

    def beat(self, message: Message = BEAT) -> None:
        self.accesses += 1
        if self.accesses == self.at:
            self.take(Order("stop", 2))
            self.take(Order("haste"))


@pytest.mark.parametrize("at", [1, 20, 23, 41])
def test_a_user_who_asks_twice_leaves_a_step_or_evaluation_and_loses_no_finished_step(tmp_path: Path, at: int) -> None:
    plan = plans.make_plan(eval_steps=2, valid_samples=8)
    whole = make_job(tmp_path / "whole", plan)
    list(training_loop(whole, Progress()))
    job = make_job(tmp_path / "run", plan, link=AskedTwice(at))
    events = list(training_loop(job, Progress()))
    stopped = events[-1]
    assert isinstance(stopped, Stopped)
    assert stopped.signal == 2
    assert stopped.step == max(1, of(StepDone, events)[-1].step)  # at step 0 there is nothing to save yet
    assert of(Saved, events)[-1].step == stopped.step
    progress = Progress(done=stopped.step)
    job = make_job(tmp_path / "run", plan)
    job.engine.load(job.run.checkpoints / f"step-{stopped.step:06d}")
    list(training_loop(job, progress))
    assert adapter_bytes(job.run.final_model) == adapter_bytes(whole.run.final_model)


@pytest.mark.parametrize("stop_after", [1, 5, 9])
def test_a_stopped_and_resumed_run_is_equal_to_the_bit(tmp_path: Path, stop_after: int) -> None:
    plan = plans.make_plan(eval_steps=2, valid_samples=8)
    whole = make_job(tmp_path / "whole", plan)
    expected = list(training_loop(whole, Progress()))
    link = Link()
    job = make_job(tmp_path / "halves", plan, link=link)
    progress = Progress()
    first = []
    for event in training_loop(job, progress):
        first.append(event)
        if isinstance(event, StepDone) and event.step == stop_after:
            link.take(Order("stop", signal=15))
    assert isinstance(first[-1], Stopped)
    assert first[-1].step == stop_after
    assert first[-1].signal == 15
    checkpoint, bad = latest_good(job.run)
    assert checkpoint is not None
    assert bad == []
    again = make_job(tmp_path / "halves", plan)
    again.engine.load(checkpoint)
    second = list(training_loop(again, progress))
    losses = {e.step: e.loss for e in of(StepDone, first + second)}
    assert losses == {e.step: e.loss for e in of(StepDone, expected)}
    assert adapter_bytes(again.run.final_model) == adapter_bytes(whole.run.final_model)
    assert of(Finished, second)[0].best_step == of(Finished, expected)[0].best_step


def test_when_memory_runs_out_the_step_is_split_smaller_and_nothing_is_lost(tmp_path: Path) -> None:
    plan = plans.make_plan(token_budget=4096)
    whole = make_job(tmp_path / "whole", plan)
    list(training_loop(whole, Progress()))
    small = make_job(tmp_path / "small", plan, memory_tokens=70)
    progress = Progress()
    events = list(training_loop(small, progress))
    assert progress.token_budget == 64
    assert len(of(Shrunk, events)) == 1  # 2048, 1024, ... would give the same split
    assert [e.step for e in of(StepDone, events)] == list(range(1, 11))
    assert small.engine.weights_V == pytest.approx(whole.engine.weights_V, rel=1e-9, abs=1e-12)  # type: ignore[attr-defined]


class CountingEngine(FakeEngine):
    """A fake engine that counts the calls of release()."""

    releases = 0

    def release(self) -> None:
        self.releases += 1


def test_when_memory_is_short_or_ran_out_the_engine_releases_its_cached_memory(tmp_path: Path) -> None:
    link = Link()
    link.take(Order("shrink"))
    job = make_job(tmp_path / "short", plans.make_plan(), link=link)
    roomy = CountingEngine(job.engine.setup)
    (short,) = of(Shrunk, list(training_loop(replace(job, engine=roomy), Progress())))
    assert not short.ran_out
    job = make_job(tmp_path / "out", plans.make_plan())
    tight = CountingEngine(job.engine.setup, memory_tokens=70)
    (ran_out,) = of(Shrunk, list(training_loop(replace(job, engine=tight), Progress())))
    assert ran_out.ran_out
    assert (roomy.releases, tight.releases) == (1, 1)


def test_a_single_sample_that_does_not_fit_raises_out_of_memory(tmp_path: Path) -> None:
    job = make_job(tmp_path, plans.make_plan(), memory_tokens=5)
    with pytest.raises(OutOfMemory):
        list(training_loop(job, Progress()))


def test_the_best_is_not_the_last_where_the_loss_rises_again(tmp_path: Path) -> None:
    plan = plans.make_plan(eval_steps=1, valid_samples=8, learning_rate=0.05, steps=40, num_epochs=20.0)
    few_tokens = plans.make_samples(32, vocab=30, seed=5)  # learning them raises the loss of the other tokens
    job = replace(make_job(tmp_path, plan), train_set=few_tokens)
    events = list(training_loop(job, Progress()))
    evals = of(EvalDone, events)[1:]
    best = min(evals, key=lambda e: e.loss)
    (finished,) = of(Finished, events)
    assert (finished.best_step, finished.best_loss) == (best.step, best.loss)
    assert 1 < best.step < 40, "it should overfit"
    assert adapter_bytes(job.run.best_model) != adapter_bytes(job.run.final_model)


class SecondLossNan(FakeEngine):
    """A fake engine whose second evaluation gives a NaN loss."""

    evaluations = 0

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> LossSum:
        self.evaluations += 1
        found = super().evaluate(micro_batches)
        return LossSum(math.nan, found.num_targets) if self.evaluations == 2 else found


def test_a_loss_that_is_not_a_number_is_never_the_best(tmp_path: Path) -> None:
    job = make_job(tmp_path, plans.make_plan(eval_steps=2, valid_samples=8))
    job = replace(job, engine=SecondLossNan(job.engine.setup))
    events = list(training_loop(job, Progress()))
    assert [e.best for e in of(EvalDone, events)][:3] == [False, False, True]


def test_the_final_adapter_is_checked_before_it_is_complete(tmp_path: Path) -> None:
    seen: list[Path] = []

    def check(folder: Path) -> Event:
        seen.append(folder)
        (folder / "README.md").write_text("checked", "utf-8")
        return AdapterChecked(text="checked")

    job = replace(make_job(tmp_path / "run", plans.make_plan(valid_samples=8)), check_adapter=check)
    events = list(training_loop(job, Progress()))
    assert [type(event) for event in events[-2:]] == [AdapterChecked, Finished]
    assert events[-2].step == job.plan.steps
    assert len(seen) == 1
    assert seen[0] != job.run.final_model
    assert (job.run.final_model / "README.md").read_text("utf-8") == "checked"
    assert verify(job.run.final_model) is None
