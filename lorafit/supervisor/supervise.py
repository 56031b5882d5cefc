"""The supervisor: starts the worker process, passes on its events, and restarts it after a failure.

diagnosis.py finds the cause of a failure and recovery.py chooses what to do; this module does it.
"""

import contextlib
import os
import platform
import signal
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType

from lorafit.config import TrainConfig
from lorafit.errors import EngineError, LorafitError
from lorafit.events import Event, EventLog, Failed, Finished, Restarted, Resumed, Started, StepDone, Warned
from lorafit.ipc.protocol import Beat, Bug, Order, RunFolder, Start, WorkerDone
from lorafit.ipc.signals import StopRequests, handle_signals
from lorafit.messages import _, language, sentences
from lorafit.planner.plan import SAVE_SECONDS
from lorafit.run_folders import directory
from lorafit.run_folders.checkpoint import discard_from, latest_good, step_of
from lorafit.run_folders.directory import RunDir, saved_config
from lorafit.run_folders.orders import CONTINUE, PAUSE, POLL_SECONDS, STOP, order_text, take_order
from lorafit.run_folders.place import RunPlace
from lorafit.supervisor import memory_pressure
from lorafit.supervisor.diagnosis import Diagnosis, WorkerExit, diagnose, is_fatal
from lorafit.supervisor.monitor import USER, Interval, Monitor, Sensors
from lorafit.supervisor.recovery import (
    RELAXED_WATCHDOG,
    PastDeath,
    Recovery,
    advice,
    choose_recovery,
    deaths_since_checkpoint,
)
from lorafit.supervisor.worker_process import COMMAND, Worker

TICK_SECONDS = 1.0  # between checks of a silent worker
LEAVE_SECONDS = 60.0  # for the step and its checkpoint if the consumer of the events leaves early
STACKS_SECONDS = 2.0  # for a hanging worker to write its stack traces
SOONEST_SAVE_SECONDS = 30.0  # shortest time between checkpoints after repeated deaths
LOG_BYTES = 1 << 20  # size limit of worker.log


class RemoteTraceback(Exception):
    """The traceback of a bug in the worker, set as the cause of the raised error."""


@dataclass
class Watch:
    """The state of a run across all its workers."""

    config: TrainConfig
    place: RunPlace | None = None  # of the run's folder
    worker: Worker | None = None
    step: int = 0  # last completed step
    training: bool = False  # the worker runs steps: it obeys a stop after its step and saves
    finished: bool = False
    stop_signal: int | None = None  # the signal that asked to stop
    held: bool = False  # the user has paused the run: a restarted worker waits too
    failed: Failed | None = None  # the worker's event, passed on only if no recovery applies
    deaths: list[PastDeath] = field(default_factory=list)
    environ: dict[str, str] = field(default_factory=dict)
    recycle_every: int | None = None

    @property
    def run(self) -> RunDir | None:
        """Return the run where its folder is now, also if the worker died before it noticed a move."""
        return None if self.place is None else RunDir(self.place.find() or self.place.path)

    def follow(self, folder: Path) -> None:
        """Take `folder` for the run's."""
        with contextlib.suppress(OSError):  # gone again: the worker reports it
            place = RunPlace(folder)
            self.close()
            self.place = place

    def close(self) -> None:
        """Close the run's folder."""
        if self.place is not None:
            self.place.close()


@dataclass
class WorkerState:
    """The state of one worker."""

    monitor: Monitor
    start_step: int  # completed steps when it started
    oom_kills: int  # the system's count when it started
    last_message: WorkerDone | LorafitError | Bug | None = None  # its last message
    fatal_line: str | None = None  # stderr line for which it is killed
    silent_seconds: float | None = None  # time without progress after which it was killed
    recycled: bool = False  # ordered to end for a new process
    order_timer: Interval = field(default_factory=lambda: Interval(POLL_SECONDS))


def supervise(config: TrainConfig, command: Sequence[str] = COMMAND, senses: Sensors | None = None) -> Iterator[Event]:
    """Run the training that `config` describes in a worker process, and yield its events as they come.

    `command` starts the process; `senses` replace this machine's sensors.
    Raises LorafitErrors as train_in_process() does, and RuntimeError for a bug in the worker.
    """
    watch = Watch(config, recycle_every=config.recycle_every)
    start = Start(config, language(), os.getpid())
    with _signals(watch), contextlib.closing(watch):
        while True:
            life = WorkerState(
                Monitor(config.pause_battery, config.hang_seconds, senses), watch.step, memory_pressure.oom_kills()
            )
            watch.worker = Worker(start, partial(_on_stderr_line, watch, life), watch.environ, command)
            try:
                yield from _follow(watch, watch.worker, life)
            finally:
                _end_worker(watch, watch.worker)
            watch.training = False
            well = isinstance(life.last_message, WorkerDone)
            if well and (watch.finished or watch.stop_signal or not life.recycled):
                return
            cured = Recovery(True, "") if well else (yield from _recover(watch, watch.worker, life))
            if not cured.restart:
                return
            start = _next_start(watch, cured)


# While the worker lives


def _follow(watch: Watch, worker: Worker, life: WorkerState) -> Iterator[Event]:
    """Yield the events of `worker` until it ends."""
    while not worker.ended:
        for message in worker.read(TICK_SECONDS):
            if isinstance(message, Event | Beat):
                life.monitor.watchdog.beat(time.monotonic())
            match message:
                case Failed():
                    watch.failed = message
                case Event():
                    _track_event(watch, life, message)
                    yield message
                case RunFolder():
                    watch.follow(Path(message.path))
                case WorkerDone() | LorafitError() | Bug():
                    life.last_message = message
        if not worker.ended:
            _check_worker(watch, worker, life)


def _track_event(watch: Watch, life: WorkerState, event: Event) -> None:
    if isinstance(event, Resumed):
        watch.step = life.start_step = event.step
    elif isinstance(event, Started):
        watch.training = True
    elif isinstance(event, StepDone):
        watch.step = event.step
    elif isinstance(event, Finished):
        watch.training, watch.finished = False, True


def _check_worker(watch: Watch, worker: Worker, life: WorkerState) -> None:
    """Send the orders that are due; kill the worker if it hangs or computes wrong values."""
    if life.fatal_line is not None:
        worker.signal(signal.SIGKILL)
    now = time.monotonic()
    if watch.training:
        _send_orders(watch, worker, life, now)
    if (watch.training or watch.finished) and life.silent_seconds is None and life.monitor.hangs(worker.pid, now):
        life.silent_seconds = life.monitor.watchdog.silent_seconds
        worker.signal(signal.SIGUSR1)  # it writes its stack traces, if it still can
        _read_until_exit(worker, STACKS_SECONDS)
        worker.signal(signal.SIGKILL)


def _send_orders(watch: Watch, worker: Worker, life: WorkerState, now: float) -> None:
    _obey_user(watch, worker, life, now)
    for order in life.monitor.orders(now):
        worker.send_order(order)
    if watch.recycle_every and watch.step - life.start_step >= watch.recycle_every and not life.recycled:
        life.recycled = True
        worker.send_order(Order("recycle"))


def _obey_user(watch: Watch, worker: Worker, life: WorkerState, now: float) -> None:
    """Pass the order in the run's folder, if there is one, to the worker."""
    if watch.run is None or not life.order_timer.due(now):
        return
    order = take_order(watch.run, os.getpid())
    if order is None and watch.held and not life.monitor.paused_by_user:
        order = PAUSE
    if order == STOP and watch.stop_signal is None:
        watch.stop_signal = signal.SIGTERM
        worker.send_order(Order("stop", signal.SIGTERM))
    elif order == PAUSE:
        watch.held = True
        worker.send_order(life.monitor.pause(USER, order_text(order, watch.run)))
    elif order == CONTINUE:
        watch.held = False
        worker.send_order(life.monitor.go_on(USER, order_text(order, watch.run)))


def _on_stderr_line(watch: Watch, life: WorkerState, line: str) -> None:
    """Handle a line of the worker's stderr: print it before training (download progress), later append it to a file."""
    if is_fatal(line):
        life.fatal_line = life.fatal_line or line.strip()
    if not watch.training and sys.stderr is not None:
        print(line, end="", file=sys.stderr, flush=True)
    elif watch.run is not None:
        with contextlib.suppress(OSError), watch.run.worker_log.open("a", encoding="utf-8") as file:
            if file.tell() < LOG_BYTES:
                file.write(line)


# After the worker's end


def _recover(watch: Watch, worker: Worker, life: WorkerState) -> Generator[Event, None, Recovery]:
    """Choose a recovery and yield Restarted; re-raise the worker's error, or raise its diagnosis, if none applies."""
    error = life.last_message if isinstance(life.last_message, LorafitError) else None
    bug = _last_line(life.last_message) if isinstance(life.last_message, Bug) else None
    kills = memory_pressure.oom_kills() - life.oom_kills
    death = diagnose(WorkerExit(worker.code, worker.tail, error, bug, kills, life.silent_seconds, life.fatal_line))
    if watch.finished:
        if life.silent_seconds is None:  # else it was only slow to end
            yield Warned(step=watch.step, text=death.text)
        return Recovery(False, "")
    done, saved = watch.step, _last_good(watch, life)
    watch.deaths.append(PastDeath(death.cause, done, saved))
    found = choose_recovery(
        watch.deaths, platform.system(), RELAXED_WATCHDOG.items() <= {**os.environ, **watch.environ}.items()
    )
    if not found.restart or watch.stop_signal or watch.config.dry_run:
        yield from _give_up(
            watch, death, _bug(life.last_message) if isinstance(life.last_message, Bug) else error, found
        )
    watch.environ |= found.environ
    watch.recycle_every = found.recycle_every or watch.recycle_every
    watch.step, watch.failed = saved, None
    where = _("Resuming after step {step}; steps to repeat: {lost}.").format(step=saved, lost=done - saved)
    text = sentences(filter(None, (death.text, found.text, where)))
    event = Restarted(step=saved, text=text, cause=death.cause, lost_steps=done - saved)
    _note(watch, event)
    yield event
    return found


def _give_up(watch: Watch, death: Diagnosis, error: Exception | None, found: Recovery) -> Iterator[Event]:
    """Yield Failed if a step was completed, and raise the error that ended the run."""
    fix = advice("asked") if found.restart and _can_resume(watch) else None if found.restart else found.text
    where = watch.run and watch.run.path
    if _is_empty(watch):  # the run's folder will be deleted
        fix, where = advice(death.cause, resumable=False), None
    raised = error or EngineError(death.text, where=where, found=death.evidence, fix=fix)
    failed = watch.failed
    if failed is None:
        failed = Failed(step=watch.step, text=str(raised))
        _note(watch, failed)
    if watch.step > 0:
        yield failed
    _discard_empty(watch)
    raise raised


def _bug(bug: Bug) -> Exception:
    raised = RuntimeError(_last_line(bug))
    raised.__cause__ = RemoteTraceback(f'\n"""\n{bug.traceback}"""')
    return raised


def _last_line(bug: Bug) -> str:
    return bug.traceback.strip().rpartition("\n")[2]


def _last_good(watch: Watch, life: WorkerState) -> int:
    """Return the step to resume from. After a GPU failure without an exception, delete the checkpoints in doubt."""
    if watch.run is None:
        return 0
    if life.fatal_line is not None:
        discard_from(watch.run, max(watch.step, life.start_step + 1))
    good = latest_good(watch.run)[0]
    return (good and step_of(good)) or 0


def _can_resume(watch: Watch) -> bool:
    return watch.run is not None and watch.run.config.is_file() and watch.run.plan.is_file()


def _next_start(watch: Watch, cured: Recovery) -> Start:
    """Return the start that resumes the run by its saved settings, or starts it anew if there is nothing to resume.

    The time between checkpoints is halved for each death in a row.
    """
    config = watch.config
    if watch.run is not None and _can_resume(watch):
        config = saved_config(watch.run).model_copy(update={"resume": str(watch.run.path), "lang": config.lang})
    else:
        _discard_empty(watch)
    row = len(deaths_since_checkpoint(watch.deaths)) if watch.deaths else 0
    soon = max(SAVE_SECONDS / 2**row, SOONEST_SAVE_SECONDS) if row else None
    return Start(config, language(), os.getpid(), cured.shrink, soon)


def _note(watch: Watch, event: Event) -> None:
    """Write `event` to the run's log, since the worker is dead. Write errors are ignored."""
    if watch.run is None or not watch.run.path.is_dir():
        return
    with contextlib.suppress(OSError, LorafitError), watch.run.lock(), EventLog(watch.run.events) as log:
        log.write(event)


# Leaving early


def _end_worker(watch: Watch, worker: Worker) -> None:
    """End a worker that still runs: after its step if it trains and no stop was requested, else at once."""
    if worker.ended:
        return
    if watch.training and watch.stop_signal is None:
        worker.send_order(Order("stop", signal.SIGHUP))
        _read_until_exit(worker, LEAVE_SECONDS)
    if not worker.ended:
        worker.kill()
    _discard_empty(watch)


def _read_until_exit(worker: Worker, seconds: float) -> None:
    """Read the worker's output until it exits or `seconds` pass. Its messages are dropped; its stderr is kept."""
    deadline = time.monotonic() + seconds
    while not worker.ended and (left := deadline - time.monotonic()) > 0:
        for _message in worker.read(min(left, TICK_SECONDS)):
            pass


def _is_empty(watch: Watch) -> bool:
    """Return whether the run is new and has no folder, or no completed step and no checkpoint in it."""
    none = watch.run is None or (watch.step == 0 and latest_good(watch.run)[0] is None)
    return watch.config.resume is None and none


def _discard_empty(watch: Watch) -> None:
    """Delete the folder of an empty run."""
    if watch.run is not None and _is_empty(watch):
        directory.discard(watch.run)


@contextlib.contextmanager
def _signals(watch: Watch) -> Iterator[None]:
    """Turn a signal within the block into an order to finish the step, save and stop.

    A second one abandons the step. A third one, or a signal before training, ends the program at once.
    """
    requests = StopRequests()

    def note(number: int, _frame: FrameType | None) -> None:
        request = requests.hear() if watch.training or watch.stop_signal else 3
        if watch.training and watch.stop_signal is None and watch.worker is not None:
            watch.stop_signal = number
            watch.worker.send_order(Order("stop", number))
        elif request == 2 and watch.worker is not None:
            watch.worker.send_order(Order("haste"))
        elif request > 2:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    with handle_signals(note, requests):
        yield
