"""The training loop: executes a plan and yields events. It prints nothing."""

import math
import shlex
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from lorafit.atomic import atomic_folder
from lorafit.data.batching import Samples, StepBatch, build_step_batch
from lorafit.data.micro_batch import MicroBatch
from lorafit.distributed.collectives import SINGLE_PROCESS, Collectives, RankLost
from lorafit.engines.base import Engine, LossSum, OutOfMemory, StepResult
from lorafit.errors import LorafitError, RunError
from lorafit.events import (
    Continued,
    EvalDone,
    Evaluating,
    Event,
    Finished,
    Moved,
    Paused,
    Saved,
    Shrunk,
    Stage,
    StepDone,
    Stopped,
    Warned,
)
from lorafit.ipc.link import RECYCLE, LeaveNow, Link
from lorafit.ipc.protocol import RunFolder
from lorafit.messages import _
from lorafit.planner.plan import SAVE_SECONDS, Plan
from lorafit.planner.schedule import lr_at, step_samples, stream_length
from lorafit.run_folders.checkpoint import make_room, prune, save_checkpoint, write_step
from lorafit.run_folders.directory import RunDir
from lorafit.run_folders.place import RunPlace
from lorafit.units import count_text

Result = TypeVar("Result")
Compute = Callable[[Sequence[MicroBatch], StepBatch], Result]
PAUSE_SECONDS = 0.5  # between checks whether a pause is over
ALL_LAYERS = 999  # more layers than any model has


@dataclass
class Progress:
    """The state of a run. It is rebuilt from the run's events, so a checkpoint stores only the step number."""

    done: int = 0  # completed steps
    saved: int = 0  # the step of the newest checkpoint
    seconds: float = 0.0  # spent in steps
    token_budget: int | None = None  # below the plan's after memory was short; None: the plan's
    recompute: int | None = None  # more layers than the plan's, if a lower budget does not help; None: the plan's
    first_loss: float | None = None  # on the validation set, before the first step
    last_loss: float | None = None
    best_step: int | None = None
    best_loss: float | None = None
    data_seconds: float = 0.0  # the part of `seconds` spent waiting for micro-batches

    def on_event(self, event: Event) -> None:
        """Update the state with an event of this run."""
        if isinstance(event, StepDone):
            self.done, self.seconds = event.step, self.seconds + event.seconds
            self.data_seconds += event.data_seconds
        elif isinstance(event, Saved):
            self.saved = event.step
        elif isinstance(event, EvalDone):
            self.last_loss = event.loss
            if event.step == 0:
                self.first_loss = event.loss
            if event.best:
                self.best_step, self.best_loss = event.step, event.loss
        elif isinstance(event, Shrunk):
            self.token_budget, self.recompute = event.token_budget, event.recompute


@dataclass
class Job:
    """Everything that the training loop needs. `run` changes if its folder is moved, which `place` finds out.

    `add_chat_files(folder)` adds to an adapter's folder the files that chatting needs. `link` carries the supervisor's
    orders. With several `ranks`, every rank has its own job, and only the leader writes files. `check_adapter(folder)`
    checks the final adapter, and may change its files.
    """

    engine: Engine
    train_set: Samples
    valid_set: Samples
    run: RunDir
    plan: Plan
    add_chat_files: Callable[[Path], None]
    link: Link
    ranks: Collectives = SINGLE_PROCESS
    place: RunPlace | None = None
    check_adapter: Callable[[Path], Event] | None = None


def training_loop(job: Job, progress: Progress) -> Iterator[Event]:
    """Run all steps after `progress.done`, with evaluations and checkpoints, and write final_model/ at the end.

    Raises RankLost after the leader has saved a checkpoint, and RunError if the run's folder was deleted.
    """
    progress.saved = progress.done
    try:
        for event in _events(job, progress):
            progress.on_event(event)
            yield event
    except LeaveNow:
        yield Warned(step=progress.done, text=_("Stopped at once: the step that was being computed is not saved."))
        if progress.saved < progress.done:
            yield from _save(job, progress.done)
        yield Stopped(step=progress.done, signal=job.link.stop_code)
    except RankLost:
        if progress.done > 0 and job.ranks.own_rank.leads:
            yield from _save(job, progress.done)
        raise
    finally:
        if job.place is not None:
            job.place.close()


def _events(job: Job, progress: Progress) -> Iterator[Event]:
    plan, saved_at = job.plan, time.monotonic()
    if progress.done == 0 and progress.first_loss is None:
        yield from _evaluate(job, progress, 0)
    for step in range(progress.done + 1, plan.steps + 1):
        job.link.may_leave = progress.done > 0 and job.ranks.own_rank.count == 1
        yield from _step(job, progress, step)
        yield from _find_folder(job, step)
        if step == plan.steps or (plan.eval_steps > 0 and step % plan.eval_steps == 0):
            yield from _evaluate(job, progress, step)
        pause = job.link.paused and step < plan.steps
        if pause:
            yield from _pause(job, step)
        yield from _order_events(job.link, step)
        leave = int(job.ranks.all_reduce_max(job.link.stop_code)) if step < plan.steps else 0
        due = not pause and (leave or _save_due(job, step, time.monotonic() - saved_at))
        if job.ranks.own_rank.leads and due:
            yield from _save(job, step)
        if pause or due:
            saved_at = time.monotonic()
        if leave:
            if leave != RECYCLE:
                yield Stopped(step=step, signal=leave)
            return
    yield from _finish(job, progress)


def _find_folder(job: Job, step: int) -> Iterator[Event]:
    """Follow the run's folder if it was moved. If it was deleted, save the adapter beside it and raise RunError."""
    if job.place is None:
        return
    found = job.place.find()
    if found is None:
        raise _folder_gone_error(job, step)
    if found != job.run.path:
        job.run = job.link.run = RunDir(found)
        job.link.send(RunFolder(str(found.absolute())))
        yield Moved(step=step, run=str(found.absolute()))


def _write(job: Job, step: int, write: Callable[[], Result]) -> Generator[Event, None, Result]:
    """Return write(), which is called again in the new place if the run's folder is moved meanwhile."""
    while True:
        yield from _find_folder(job, step)
        try:
            return write()
        except Exception:
            if job.place is None or job.place.find() == job.run.path:
                raise


def _folder_gone_error(job: Job, step: int) -> RunError:
    beside = job.run.path.with_name(f"{job.run.path.name}-rescued")
    what = _("The run's folder was deleted during the training.")
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        save_adapter(job, beside, step)
    except (OSError, LorafitError) as error:
        return RunError(what, where=job.run.path, found=_("the adapter cannot be saved: {why}").format(why=error))
    found = _("the adapter after step {step} is saved: {path}").format(step=step, path=beside)
    fix = _("Start a new run from it: {flags}").format(flags=f"`--init_adapter {shlex.quote(str(beside))}`")
    return RunError(what, where=job.run.path, found=found, fix=fix)


def _order_events(link: Link, step: int) -> Iterator[Event]:
    """Yield the orders as events: only the training process writes to the run's log while it trains."""
    kinds = {"say": Warned, "pause": Paused, "go_on": Continued}
    for order in link.take_orders():
        yield kinds[order.name](step=step, text=order.text)


def _pause(job: Job, step: int) -> Iterator[Event]:
    """Save a checkpoint and wait for the end of the pause, or for an order to stop."""
    if job.ranks.own_rank.leads:
        yield from _save(job, step)
    while job.link.paused and not job.link.stop_code:
        yield from _order_events(job.link, step)
        time.sleep(PAUSE_SECONDS)


def _save_due(job: Job, step: int, seconds: float) -> bool:
    if step == job.plan.steps:
        return True
    if job.plan.save_steps > 0:
        return step % job.plan.save_steps == 0
    return seconds >= (job.link.save_seconds or SAVE_SECONDS)


def _compute_with_retry(
    job: Job, progress: Progress, samples: Samples, rows: Sequence[int], compute: Compute[Result]
) -> Generator[Event, None, tuple[StepBatch, Result]]:
    """Return the batch of `rows` and the result of compute(this rank's micro-batches, batch).

    After out of memory, or an order to use less memory, yield Shrunk and retry with less memory.
    Raises OutOfMemory if memory ran out and nothing is left to shrink.
    """
    here = job.ranks.own_rank
    while True:
        budget = progress.token_budget or job.plan.token_budget
        data = build_step_batch(
            samples, rows, budget, job.plan.max_micro_batch, here.count, job.engine.facts.shares_prefixes
        )
        if job.ranks.all_reduce_max(int(job.link.take_shrink())):
            less = _shrink(job, progress, budget, data, _memory_tight(job.plan.device))
            if less is None and job.link.must_shrink:
                raise _sample_too_long_error(None, data)
            ran_out, job.link.must_shrink = job.link.must_shrink, False
            if less is not None:
                job.engine.release()
                yield replace(less, ran_out=ran_out)
                continue
        try:
            return data, compute(data.for_rank(here.rank), data)
        except OutOfMemory as error:
            less = _shrink(job, progress, budget, data, _out_of_memory(job.plan.device))
            if less is None:
                raise _sample_too_long_error(error, data) from error
            job.engine.release()
            yield less


def _memory_tight(device: str) -> str:
    return _("GPU memory is tight") if device == "cuda" else _("Memory is tight")


def _out_of_memory(device: str) -> str:
    return _("Out of GPU memory") if device == "cuda" else _("Out of memory")


def _shrink(job: Job, progress: Progress, budget: int, data: StepBatch, why: str) -> Shrunk | None:
    """Lower the token budget; if no micro-batch can be split, recompute all layers. None: neither is possible."""
    if any(len(micro.sample_ids) > 1 for micro in data.micro_batches):
        progress.token_budget = _smaller_budget(budget, data)
        text = _("{why}: from now on {budget} tokens per micro-batch.").format(
            why=why, budget=count_text(progress.token_budget)
        )
    elif progress.recompute is None:
        progress.recompute = ALL_LAYERS
        job.engine.set_recompute(ALL_LAYERS)
        text = _(
            "{why}: from now on gradient checkpointing on every layer, which takes less memory but more time."
        ).format(why=why)
    else:
        return None
    return Shrunk(step=progress.done, text=text, token_budget=progress.token_budget, recompute=progress.recompute)


def _smaller_budget(budget: int, data: StepBatch) -> int:
    """Halve `budget` until `data` splits differently: the same split would run out of memory again."""
    fullest = max(micro.num_tokens for micro in data.micro_batches if len(micro.sample_ids) > 1)
    budget //= 2  # at least once: a shared prefix counts once in the budget but in each sample of num_tokens
    while budget >= fullest:
        budget //= 2
    return budget


def _sample_too_long_error(error: OutOfMemory | None, data: StepBatch) -> OutOfMemory:
    """Return the OutOfMemory error for a single sample that does not fit into memory."""
    longest = max(micro.num_tokens for micro in data.micro_batches)
    return OutOfMemory(
        _("Out of memory on a single sample of {tokens} tokens, which cannot be split.").format(tokens=longest),
        where=error and error.what,
        found=error and error.found,
        fix=_(
            "Start a new run with a smaller `--max_length`, `--quantization 4bit` or a smaller "
            "model; or close other programs that use this memory, and resume with --resume."
        ),
    )


def _step(job: Job, progress: Progress, step: int) -> Iterator[Event]:
    """Run one optimizer update. A retry after out of memory skips no sample."""
    plan, began = job.plan, time.monotonic()

    def update(share: Sequence[MicroBatch], data: StepBatch) -> StepResult:
        return job.engine.step(step, job.link.with_beats(share), data.num_targets, lr_at(step, plan))

    rows = step_samples(plan, step)
    ordering = time.monotonic() - began  # the first step of an epoch computes the epoch's permutation
    data, result = yield from _compute_with_retry(job, progress, job.train_set, rows, update)
    done = _step_done(plan, step, data, result, time.monotonic() - began)
    yield replace(done, data_seconds=ordering + data.build_seconds)


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
    """Measure the validation loss; save the adapter to best_model/ if it is the lowest loss after step 0."""
    if not len(job.valid_set):
        return
    yield Stage(step=step, text=_("Evaluating on the validation set ({rows} rows)").format(rows=len(job.valid_set)))
    began = time.monotonic()
    rows = range(len(job.valid_set))

    def so_far(share: float) -> Evaluating:
        return Evaluating(step=step, rows=len(rows), share=share)

    def measure(share: Sequence[MicroBatch], _data: StepBatch) -> LossSum:
        return job.engine.evaluate(job.link.with_beats(share, so_far))

    data, total = yield from _compute_with_retry(job, progress, job.valid_set, rows, measure)
    loss = total.mean
    best = step > 0 and math.isfinite(loss) and (progress.best_loss is None or loss < progress.best_loss)
    if best:
        yield from _write(job, step, lambda: save_adapter(job, job.run.best_model, step))
    seconds = time.monotonic() - began
    yield EvalDone(step=step, loss=loss, target_tokens=data.num_targets, seconds=seconds, best=best)


def save_adapter(job: Job, target: Path, step: int) -> None:
    """Write the adapter after `step` and its chat files to `target`, complete or not at all. Only the leader writes."""
    if job.ranks.own_rank.leads:
        with atomic_folder(target, parents=False) as folder:
            _write_adapter(job, folder, step)


def _write_adapter(job: Job, folder: Path, step: int) -> None:
    write_step(folder, step)
    job.engine.save_adapter(folder)
    job.add_chat_files(folder)


def _save(job: Job, step: int) -> Iterator[Event]:
    yield (yield from _write(job, step, lambda: _checkpoint(job, step)))


def _checkpoint(job: Job, step: int) -> Saved:
    def write(folder: Path) -> None:
        job.engine.save(folder)
        job.add_chat_files(folder)

    make_room(job.run)
    saved = save_checkpoint(job.run, step, write)
    prune(job.run, job.plan.keep_checkpoints)
    path = saved.path.relative_to(job.run.path).as_posix()
    return Saved(step=step, path=path, bytes=saved.bytes, seconds=saved.seconds)


def _final_model(job: Job) -> list[Event]:
    """Write final_model, and return the answer of the check of its adapter."""
    with atomic_folder(job.run.final_model, parents=False) as folder:
        _write_adapter(job, folder, job.plan.steps)
        return [] if job.check_adapter is None else [job.check_adapter(folder)]


def _finish(job: Job, progress: Progress) -> Iterator[Event]:
    if job.ranks.own_rank.leads:
        if job.check_adapter is not None:
            yield Stage(step=job.plan.steps, text=_("Saving the adapter, and checking that `peft` loads it"))
        checked = yield from _write(job, job.plan.steps, lambda: _final_model(job))
        yield from [replace(event, step=job.plan.steps) for event in checked]
    yield Finished(
        step=job.plan.steps,
        seconds=progress.seconds,
        valid_loss_before=progress.first_loss,
        valid_loss_after=progress.last_loss,
        best_step=progress.best_step,
        best_loss=progress.best_loss,
        path=job.run.final_model.relative_to(job.run.path).as_posix(),
        data_seconds=progress.data_seconds,
    )
