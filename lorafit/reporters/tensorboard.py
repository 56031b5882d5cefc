"""TensorBoard reporter: a run's events as scalars under logs/, written without a tensor library.

Unknown values are left out, never written as 0. Records are written synchronously: tensorboard's own writer uses a
thread. A full disk kills that thread with a traceback, and the writer then waits for it forever.
"""

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any

from lorafit.atomic import disk_errors
from lorafit.events import EvalDone, Event, Moved, Resumed, Started, StepDone
from lorafit.run_folders.directory import RunDir
from lorafit.units import GIB

VERSION = "brain.Event:2"  # of the file format


class TensorBoardReporter:
    """Reporter that writes into logs/ of the run that the `Started` event names.

    Each process writes a file of its own, as TensorBoard expects.
    """

    def __init__(self) -> None:
        self._buffered: list[Event] = []  # events before `Started`, which names the run's folder
        self._writer: Any = None
        self._failed = False  # a write failed; the run's own writer uses the same disk and reports the error

    def on_event(self, event: Event) -> None:
        """Write the scalars of `event`. Raise DiskError if the file cannot be created."""
        if isinstance(event, Started | Moved) and self._writer is None:
            folder = RunDir(Path(event.run)).logs
            with disk_errors(folder), contextlib.suppress(FileNotFoundError):  # moved meanwhile: `Moved` follows
                self._open(folder)
        if self._writer is None:
            self._buffered.append(event)
        elif not self._failed:
            try:
                self._write(event)
            except OSError:
                self._failed = True

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, folder: Path) -> None:
        # imported here because it takes half a second, which `lorafit --help` does not need
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._record: Any = event_pb2.Event
        self._session: Any = event_pb2.SessionLog
        self._summary: Any = summary_pb2.Summary
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter((folder / name).open("wb", buffering=0))
        self._add(self._record(wall_time=time.time(), file_version=VERSION))
        for event in self._buffered:
            self._write(event)

    def _write(self, event: Event) -> None:
        if isinstance(event, Resumed):
            start = self._session(status=self._session.START)
            # TensorBoard discards the points it has from this step on
            self._add(self._record(wall_time=event.time, step=event.step + 1, session_log=start))
        scalars = {tag: value for tag, value in _scalars(event).items() if value is not None}
        if scalars:
            values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
            summary = self._summary(value=values)
            self._add(self._record(wall_time=event.time, step=event.step, summary=summary))

    def _add(self, record: Any) -> None:
        self._writer.write(record.SerializeToString())


def _scalars(event: Event) -> dict[str, float | None]:
    if isinstance(event, EvalDone):
        return {"valid/loss": event.loss}
    if not isinstance(event, StepDone):
        return {}
    return {
        "train/loss": event.loss,
        "train/learning_rate": event.lr,
        "train/grad_norm": event.grad_norm,
        "speed/tokens_per_second": event.tokens / event.seconds if event.seconds > 0 else None,
        "memory/peak_gib": None if event.peak_bytes is None else event.peak_bytes / GIB,
    }
