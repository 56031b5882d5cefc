"""THE training loop: takes a plan, obeys it, yields what happened and prints nothing."""

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from lorafit.atomic import whole_folder
from lorafit.data.batching import Samples, StepBatch, batch
from lorafit.data.micro_batch import MicroBatch
from lorafit.distributed.collectives import SINGLE_PROCESS, Collectives, RankLost
from lorafit.engines.base import Engine, LossSum, OutOfMemory, StepResult
from lorafit.events import EvalDone, Evaluating, Event, Finished, Saved, Shrunk, Stage, StepDone, Stopped, Warned
from lorafit.ipc.link import RECYCLE, Link
from lorafit.messages import _
from lorafit.planner.plan import Plan
from lorafit.planner.schedule import lr_at, step_samples, stream_length
from lorafit.run_folders.checkpoint import make_room, prune, save_checkpoint, write_step
from lorafit.run_folders.directory import RunDir

Result = TypeVar("Result")
Compute = Callable[[Sequence[MicroBatch], StepBatch], Result]
SAVE_SECONDS = 600.0  # what a crash costs at most, where --save_steps does not say otherwise
PAUSE_SECONDS = 0.5  # between looks whether a pause is over
ALL_LAYERS = 999  # more than any model has


@dataclass
class Progress:
    """Where a run stands. Read back from its events, so that nothing but the step number need be saved."""

    done: int = 0  # steps
    seconds: float = 0.0  # spent in steps
    token_budget: int | None = None  # lower than the plan's after memory ran out
    recompute: int | None = None  # more layers than the plan's, where a lower budget is of no help
    first_loss: float | None = None  # on the validation set, before the first step
    last_loss: float | None = None
    best_step: int | None = None
    best_loss: float | None = None
    data_seconds: float = 0.0  # of `seconds`, spent waiting for micro-batches

    def on_event(self, event: Event) -> None:
        """Take note of an event of this run."""
        if isinstance(event, StepDone):
            self.done, self.seconds = event.step, self.seconds + event.seconds
            self.data_seconds += event.data_seconds
        elif isinstance(event, EvalDone):
            self.last_loss = event.loss
            if event.step == 0:
                self.first_loss = event.loss
            if event.best:
                self.best_step, self.best_loss = event.step, event.loss
        elif isinstance(event, Shrunk):
            self.token_budget, self.recompute = event.token_budget, event.recompute


@dataclass(frozen=True)
class Job:
    """All that training needs. `add_chat_files` adds to an adapter's folder what chatting needs; `link` tells when to stop.

    Of several `ranks` every one has a job, and the leader alone writes.
    """

    engine: Engine
    train_set: Samples
    valid_set: Samples
    run: RunDir
    plan: Plan
    add_chat_files: Callable[[Path], None]
    link: Link
    ranks: Collectives = SINGLE_PROCESS


def training_loop(job: Job, progress: Progress) -> Iterator[Event]:
    """All steps after `progress.done`, with evaluations and checkpoints; final_model/ at the end."""
    try:
        for event in _events(job, progress):
            progress.on_event(event)
            yield event
    except RankLost:
        if progress.done > 0 and job.ranks.place.leads:
            yield _save(job, progress.done)
        raise


def _events(job: Job, progress: Progress) -> Iterator[Event]:
    plan, saved_at = job.plan, time.monotonic()
    if progress.done == 0 and progress.first_loss is None:
        yield from _evaluate(job, progress, 0)
    for step in range(progress.done + 1, plan.steps + 1):
        yield from _step(job, progress, step)
        if step == plan.steps or (plan.eval_steps > 0 and step % plan.eval_steps == 0):
            yield from _evaluate(job, progress, step)
        yield from _told(job, step)
        leave = int(job.ranks.all_reduce_max(job.link.leave)) if step < plan.steps else 0
        if job.ranks.place.leads and (leave or job.link.paused or _save_due(job, step, time.monotonic() - saved_at)):
            yield _save(job, step)
            saved_at = time.monotonic()
        if leave:
            if leave != RECYCLE:
                yield Stopped(step=step, signal=leave)
            return
        _pause(job.link)
    yield _finish(job, progress)


def _told(job: Job, step: int) -> Iterator[Event]:
    """What the supervisor has to say: the run's events are written by one process alone."""
    for text in job.link.take_texts():
        yield Warned(step=step, text=text)


def _pause(link: Link) -> None:
    """Wait, with everything saved, for as long as the supervisor wants."""
    while link.paused and not link.leave:
        time.sleep(PAUSE_SECONDS)


def _save_due(job: Job, step: int, seconds: float) -> bool:
    if step == job.plan.steps:
        return True
    if job.plan.save_steps > 0:
        return step % job.plan.save_steps == 0
    return seconds >= (job.link.save_seconds or SAVE_SECONDS)


def _fitting(
    job: Job, progress: Progress, samples: Samples, rows: Sequence[int], compute: Compute[Result]
) -> Generator[Event, None, tuple[StepBatch, Result]]:
    """compute(our share of `rows`, all of them); when memory runs out they are split smaller and it is computed again."""
    here = job.ranks.place
    while True:
        budget = progress.token_budget or job.plan.token_budget
        data = batch(samples, rows, budget, job.plan.max_micro_batch, here.count, job.engine.facts.shares)
        if job.ranks.all_reduce_max(int(job.link.take_shrink())):
            less = _less(job, progress, budget, data, _("Memory is short"))
            if less is None and job.link.must_shrink:
                raise _too_long(None, data)
            ran_out, job.link.must_shrink = job.link.must_shrink, False
            if less is not None:
                job.engine.release()
                yield replace(less, ran_out=ran_out)
                continue
        try:
            return data, compute(data.share(here.rank), data)
        except OutOfMemory as error:
            less = _less(job, progress, budget, data, _("Memory ran out"))
            if less is None:
                raise _too_long(error, data) from error
            job.engine.release()
            yield less


def _less(job: Job, progress: Progress, budget: int, data: StepBatch, why: str) -> Shrunk | None:
    """Take less memory from here on: fewer tokens at a time, else layers that compute twice. None: nothing is left to do."""
    if any(len(micro.sample_ids) > 1 for micro in data.micro_batches):
        progress.token_budget = _smaller(budget, data)
        text = _("{why}: from here on {budget} tokens at a time.").format(why=why, budget=progress.token_budget)
    elif progress.recompute is None:
        progress.recompute = ALL_LAYERS
        job.engine.set_recompute(ALL_LAYERS)
        text = _("{why}: from here on each layer computes its activations twice.").format(why=why)
    else:
        return None
    return Shrunk(step=progress.done, text=text, token_budget=progress.token_budget, recompute=progress.recompute)


def _smaller(budget: int, data: StepBatch) -> int:
    """`budget` halved until `data` would be split otherwise: the same split would fail again."""
    fullest = max(micro.num_tokens for micro in data.micro_batches if len(micro.sample_ids) > 1)
    budget //= 2  # at least once: tokens that samples share may count once
    while budget >= fullest:
        budget //= 2
    return budget


def _too_long(error: OutOfMemory | None, data: StepBatch) -> OutOfMemory:
    """The words for memory that one sample alone is too much for."""
    longest = max(micro.num_tokens for micro in data.micro_batches)
    return OutOfMemory(
        _("Memory ran out over a single sample of {tokens} tokens: it cannot be split.").format(tokens=longest),
        where=error and error.what,
        found=error and error.found,
        fix=_(
            "Begin a new run with a smaller `--max_length`, `--quantization 4bit` or a smaller model; or close other "
            "programs that use this memory, and go on."
        ),
    )


def _step(job: Job, progress: Progress, step: int) -> Iterator[Event]:
    """One update; nothing is lost or skipped."""
    plan, began = job.plan, time.monotonic()

    def update(share: Sequence[MicroBatch], data: StepBatch) -> StepResult:
        return job.engine.step(step, job.link.beating(share), data.num_targets, lr_at(step, plan))

    rows = step_samples(plan, step)
    ordering = time.monotonic() - began  # the first step of an epoch draws its order
    data, result = yield from _fitting(job, progress, job.train_set, rows, update)
    done = _step_done(plan, step, data, result, time.monotonic() - began)
    yield replace(done, data_seconds=ordering + data.seconds)


def _step_done(plan: Plan, step: int, data: StepBatch, result: StepResult, seconds: float) -> StepDone:
    return StepDone(
        step=step,
        loss=result.loss_sum / data.num_targets,
        target_tokens=data.num_targets,
        tokens=data.num_tokens,
        grad_norm=result.grad_norm,
        lr=lr_at(step, plan),
        seconds=seconds,
        peak_bytes=result.peak_bytes,
        micro_batches=len(data.micro_batches),
        epoch=min(step * plan.effective_batch, stream_length(plan)) / plan.train_samples,
    )


def _evaluate(job: Job, progress: Progress, step: int) -> Iterator[Event]:
    """Loss on the validation set; the best adapter so far is kept in best_model/."""
    if not len(job.valid_set):
        return
    yield Stage(step=step, text=_("Evaluating on {rows} held-out rows").format(rows=len(job.valid_set)))
    began = time.monotonic()
    rows = range(len(job.valid_set))

    def so_far(share: float) -> Evaluating:
        return Evaluating(step=step, rows=len(rows), share=share)

    def measure(share: Sequence[MicroBatch], _data: StepBatch) -> LossSum:
        return job.engine.evaluate(job.link.beating(share, so_far))

    data, total = yield from _fitting(job, progress, job.valid_set, rows, measure)
    loss = total.mean
    best = step > 0 and math.isfinite(loss) and (progress.best_loss is None or loss < progress.best_loss)
    if best:
        save_adapter(job, job.run.best_model, step)
    seconds = time.monotonic() - began
    yield EvalDone(step=step, loss=loss, target_tokens=data.num_targets, seconds=seconds, best=best)


def save_adapter(job: Job, target: Path, step: int) -> None:
    """Write the adapter of `step`, and what chatting needs beside it, into `target`: whole or not at all."""
    if not job.ranks.place.leads:
        return
    with whole_folder(target) as folder:
        write_step(folder, step)
        job.engine.save_adapter(folder)
        job.add_chat_files(folder)


def _save(job: Job, step: int) -> Saved:
    def write(folder: Path) -> None:
        job.engine.save(folder)
        job.add_chat_files(folder)

    make_room(job.run)
    saved = save_checkpoint(job.run, step, write)
    prune(job.run, job.plan.keep_checkpoints)
    path = saved.path.relative_to(job.run.path).as_posix()
    return Saved(step=step, path=path, bytes=saved.bytes, seconds=saved.seconds)


def _finish(job: Job, progress: Progress) -> Finished:
    save_adapter(job, job.run.final_model, job.plan.steps)
    return Finished(
        step=job.plan.steps,
        seconds=progress.seconds,
        valid_loss_before=progress.first_loss,
        valid_loss_after=progress.last_loss,
        best_step=progress.best_step,
        best_loss=progress.best_loss,
        path=job.run.final_model.relative_to(job.run.path).as_posix(),
        data_seconds=progress.data_seconds,
    )
