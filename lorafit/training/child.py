"""What is `python -m lorafit.training.child`? The process that the engine lives in: settings and orders come in, events go out.

It ignores Ctrl-C, which its supervisor hears and turns into an order, and ends when the pipe of orders closes.
"""

import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Iterator

from lorafit.config import TrainConfig
from lorafit.errors import LorafitError
from lorafit.events import Event
from lorafit.ipc.link import Link, listen
from lorafit.ipc.protocol import Message, WorkerDone, bug_of, message_line, read_start
from lorafit.messages import set_language
from lorafit.training.worker import train_in_process


def main(work: Callable[[TrainConfig, Link], Iterator[Event]]) -> int:
    """Do by `train_in_process` what the first line of stdin says. How it ended is told on the pipe; the exit code says little."""
    # What allocators read from the environment is set here: no tensor library is loaded yet.
    send = _sender()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    start = read_start(sys.stdin.readline())
    set_language(start.language)
    link = Link(send, start.supervisor)
    link.must_shrink, link.save_seconds = start.shrink, start.save_seconds
    listen(link, sys.stdin)
    try:
        for event in work(start.config, link):
            send(event)
        send(WorkerDone())
    except LorafitError as error:
        send(error)
        return 2
    except Exception as error:
        send(bug_of(error))
        return 1
    return 0


def _sender() -> Callable[[Message], None]:
    """Says a message to the supervisor. What libraries print from now on goes to stderr and disturbs nothing."""
    descriptor = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(message: Message) -> None:
        data = message_line(message).encode(errors="backslashreplace") + b"\n"
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more; what can be saved still is
            while data:
                data = data[os.write(descriptor, data) :]

    return send


if __name__ == "__main__":
    sys.exit(main(train_in_process))
