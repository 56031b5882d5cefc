"""Handlers for the signals that ask a program to stop."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ASK_TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


ONE_REQUEST_SECONDS = 1.5  # `timeout`, and a terminal that closes, deliver one stop as several signals


class StopRequests:
    """The user's requests to stop, counted from signals.

    Signals within ONE_REQUEST_SECONDS of a request's first signal belong to it.
    """

    def __init__(self) -> None:
        self._count, self._since = 0, -math.inf

    def hear(self) -> int:
        """Note a signal; return the number of the request that it belongs to: 1, 2 and so on."""
        now = time.monotonic()
        if now - self._since > ONE_REQUEST_SECONDS:
            self._count, self._since = self._count + 1, now
        return self._count


@contextmanager
def handle_signals(note: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call `note` for each signal in ASK_TO_STOP inside the context.

    Outside the main thread, as in a notebook or a server, no handler is installed. An ignored signal stays ignored:
    with `nohup`, training outlives its terminal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in ASK_TO_STOP if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
