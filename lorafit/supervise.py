"""Who looks after the process with the engine? Starts it, hands on what it says, hears signals, and sees how it ends."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from lorafit import rundir
from lorafit.checkpoint import latest_good
from lorafit.config import TrainConfig
from lorafit.errors import EngineError, LorafitError
from lorafit.events import Event, Finished, Started, StepDone
from lorafit.messages import _, language
from lorafit.rundir import RunDir
from lorafit.watch.process import COMMAND, Worker
from lorafit.watch.wire import Bug, Ended, Order, RunFolder, Start

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TICK_SECONDS = 1.0  # between looks at the worker when it says nothing
LEAVE_SECONDS = 60.0  # for the step and its checkpoint when the one who watches goes away


class RemoteTraceback(Exception):
    """A bug's traceback in the worker, for the bug to be raised from."""


@dataclass
class Watch:
    """What the supervisor knows of the run."""

    fresh: bool  # a new run, not one that is gone on with
    run: RunDir | None = None
    step: int = 0  # done
    training: bool = False  # a stop is obeyed after the step, with everything saved
    asked: int | None = None  # the signal that asked to stop
    said: Ended | LorafitError | Bug | None = None  # how the worker says that it ended

    def see(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, Started):
            self.training, self.step = True, event.step
        elif isinstance(event, StepDone):
            self.step = event.step
        elif isinstance(event, Finished):
            self.training = False


def supervise(config: TrainConfig, command: Sequence[str] = COMMAND) -> Iterator[Event]:
    """Do what `config` asks for in a process of its own; its events as they come. Raises LorafitErrors as worker.work()."""
    watch = Watch(fresh=config.resume is None)
    start = Start(config, language(), os.getpid())
    worker = Worker(start, lambda line: _hear(watch, line), command=command)
    with _signals(watch, worker):
        try:
            yield from _follow(worker, watch)
        finally:
            _leave(worker, watch)
    _end(worker, watch)


def _follow(worker: Worker, watch: Watch) -> Iterator[Event]:
    """The events of `worker` until it ends."""
    while not worker.over:
        for message in worker.read(TICK_SECONDS):
            match message:
                case Event():
                    watch.see(message)
                    yield message
                case RunFolder():
                    watch.run = RunDir(Path(message.path))
                case Ended() | LorafitError() | Bug():
                    watch.said = message


def _hear(watch: Watch, line: str) -> None:
    """A line of the worker's stderr: shown as long as it gets ready (downloads draw their bars there), later kept only."""
    if not watch.training and sys.stderr is not None:
        print(line, file=sys.stderr)


def _end(worker: Worker, watch: Watch) -> None:
    """Say how the worker ended: nothing after a good end, else raise what it raised or died of."""
    if isinstance(watch.said, Ended):
        return
    if isinstance(watch.said, Bug):
        raise RuntimeError(watch.said.traceback.strip().rpartition("\n")[2]) from RemoteTraceback(
            f'\n"""\n{watch.said.traceback}"""'
        )
    if isinstance(watch.said, LorafitError):
        raise watch.said
    _discard_empty(watch)
    raise EngineError(
        _("The process with the engine died."), where=watch.run and watch.run.path, found=worker.code, fix=None
    )


# leaving


def _leave(worker: Worker, watch: Watch) -> None:
    """See the worker end when we are left early: after its step where it trains and nobody is in a hurry, else at once."""
    if worker.over:
        return
    if watch.training and watch.asked is None:
        worker.order(Order("stop", signal.SIGHUP))
        deadline = time.monotonic() + LEAVE_SECONDS
        while not worker.over and time.monotonic() < deadline:
            for _message in worker.read(TICK_SECONDS):
                pass
    if not worker.over:
        worker.kill()
    _discard_empty(watch)


def _discard_empty(watch: Watch) -> None:
    """A new run that has done no step leaves nothing behind."""
    if watch.fresh and watch.run is not None and watch.step == 0 and latest_good(watch.run)[0] is None:
        rundir.discard(watch.run)


@contextlib.contextmanager
def _signals(watch: Watch, worker: Worker) -> Iterator[None]:
    """Inside, a signal makes the worker finish its step, save and stop; a second Ctrl-C ends it at once."""

    def note(number: int, _frame: FrameType | None) -> None:
        if watch.training and watch.asked is None:
            watch.asked = number
            worker.order(Order("stop", number))
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        elif not watch.training:
            raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # a notebook's or server's thread gets no signals
        yield
        return
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
