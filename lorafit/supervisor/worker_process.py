"""The supervisor's end of the worker process: start, orders, messages, stderr and exit."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lorafit.ipc.protocol import Message, Order, Start, order_line, read_message, start_line

COMMAND = (sys.executable, "-m", "lorafit.training.child")
PACKAGE = Path(__file__).parents[2]
TAIL_LINES = 200  # of stderr, kept for the diagnosis
CHUNK = 1 << 16
REAP_SECONDS = 10.0  # for a process that has closed its pipes to exit


class Worker:
    """A worker process in the supervisor's process group.

    `heard(line)` is called for every line of its stderr, with the line ending. `tail` keeps the last lines.
    """

    def __init__(
        self,
        start: Start,
        heard: Callable[[str], None],
        environ: Mapping[str, str] | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.ended = False
        self._on_line = heard
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=_environment(environ or {}),
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._events, self._errors = self._process.stdout.fileno(), self._process.stderr.fileno()
        self._partial_lines = {self._events: b"", self._errors: b""}
        for descriptor in self._partial_lines:
            os.set_blocking(descriptor, False)
        self._write(start_line(start))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while the process lives."""
        return self._process.returncode

    def send_order(self, order: Order) -> None:
        """Send an order; do nothing if the worker is gone."""
        self._write(order_line(order))

    def signal(self, number: int) -> None:
        """Send a signal; do nothing if the worker is gone."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def read(self, seconds: float) -> Iterator[Message]:
        """Wait up to `seconds` for output and yield its messages. Set `ended` once the worker has ended."""
        open_ = list(self._partial_lines)
        ready, _w, _x = select.select(open_, [], [], seconds)
        for descriptor in sorted(ready, key=open_.index):  # events before stderr: they show the step of an error
            yield from self._messages(descriptor)
        if self._events not in self._partial_lines or self._process.poll() is not None:
            yield from self._drain()

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        self.signal(signal.SIGKILL)
        self._process.wait()
        self.ended = True
        self._close()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(line.encode() + b"\n")

    def _messages(self, descriptor: int) -> Iterator[Message]:
        for line in self._lines(descriptor):
            if descriptor == self._errors:
                self.tail.append(line.rstrip())
                self._on_line(line)
            elif message := read_message(line):
                yield message

    def _lines(self, descriptor: int) -> Iterator[str]:
        """Yield the complete lines of a pipe with their line endings; progress bars end in a carriage return."""
        while True:
            try:
                data = os.read(descriptor, CHUNK)
            except BlockingIOError:
                return
            lines = (self._partial_lines[descriptor] + data).splitlines(keepends=True)
            if not data:
                del self._partial_lines[descriptor]
            else:
                self._partial_lines[descriptor] = b"" if lines[-1].endswith((b"\n", b"\r")) else lines.pop()
            yield from (line.decode(errors="replace") for line in lines)
            if not data:
                return

    def _drain(self) -> Iterator[Message]:
        """Yield the messages left in the pipes. Stderr need not close: the worker's children may hold it open."""
        deadline = time.monotonic() + REAP_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if self._process.poll() is None:
            self.signal(signal.SIGKILL)
            self._process.wait()
        for descriptor in list(self._partial_lines):
            yield from self._messages(descriptor)
        self.ended = True
        self._close()

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with this package on the path, whatever the working directory, and `extra`."""
    path = os.pathsep.join(filter(None, (str(PACKAGE), os.environ.get("PYTHONPATH"))))
    environ = {**os.environ, "PYTHONPATH": path, **extra}
    if sys.stderr is not None and sys.stderr.isatty():
        environ.setdefault("TQDM_POSITION", "-1")  # draw progress bars of downloads although stderr is a pipe
    return environ
