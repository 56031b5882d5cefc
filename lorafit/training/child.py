"""The worker process, `python -m lorafit.training.child`: reads settings and orders on stdin, writes events to stdout.

The process ignores Ctrl-C: the supervisor receives the signal and sends an order. The process ends when stdin closes.
"""

import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Iterator

from lorafit.atomic import system_error
from lorafit.config import TrainConfig
from lorafit.errors import LorafitError
from lorafit.events import Event
from lorafit.ipc.link import Link, receive_orders
from lorafit.ipc.protocol import Message, WorkerDone, message_line, read_start, to_bug
from lorafit.messages import set_language, use_utf8
from lorafit.training.worker import train_in_process


def main(work: Callable[[TrainConfig, Link], Iterator[Event]]) -> int:
    """Run `work` with the config read from stdin, and write its events to stdout.

    The last message is `WorkerDone` or the error. Return 0, 2 after a LorafitError, 1 after any other exception.
    """
    use_utf8()
    send = _sender()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    start = read_start(sys.stdin.readline())
    set_language(start.language)
    link = Link(send, start.supervisor)
    link.must_shrink, link.save_seconds = start.shrink, start.save_seconds
    receive_orders(link, sys.stdin)
    try:
        for event in work(start.config, link):
            send(event)
        send(WorkerDone())
    except Exception as error:
        known = error if isinstance(error, LorafitError) else system_error(error)
        send(to_bug(error) if known is None else known)
        return 1 if known is None else 2
    return 0


def _sender() -> Callable[[Message], None]:
    """Return a function that sends a message to the supervisor.

    Stdout is redirected to stderr, so that output of libraries does not mix with the messages.
    """
    descriptor = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(message: Message) -> None:
        data = message_line(message).encode(errors="backslashreplace") + b"\n"
        with contextlib.suppress(BrokenPipeError):  # the supervisor is gone; training still saves its state
            while data:
                data = data[os.write(descriptor, data) :]

    return send


if __name__ == "__main__":
    sys.exit(main(train_in_process))
