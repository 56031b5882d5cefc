"""Handlers for the signals that ask a program to stop."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ASK_TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


Handler = Callable[[int, FrameType | None], object] | int | None
ONE_REQUEST_SECONDS = 1.5  # `timeout`, and a terminal that closes, deliver one stop as several signals


class StopRequests:
    """The user's requests to stop, counted from signals.

    Signals within ONE_REQUEST_SECONDS of a request's first signal belong to it.
    """

    def __init__(self) -> None:
        self._count, self._since = 0, -math.inf

    def hear(self) -> int:
        """Note a signal; return the number of the request that it belongs to: 1, 2 and so on."""
        if not self._is_open():
            self._count, self._since = self._count + 1, time.monotonic()
        return self._count

    def after(self, handler: Handler) -> Handler:
        """Return `handler`, or one that first lets the late signals of the last request pass."""
        if not self._is_open():
            return handler

        def late(number: int, _frame: FrameType | None) -> None:
            if not self._is_open():
                signal.signal(number, handler)
                signal.raise_signal(number)

        return late

    def _is_open(self) -> bool:
        return time.monotonic() - self._since <= ONE_REQUEST_SECONDS


@contextmanager
def handle_signals(note: Callable[[int, FrameType | None], None], requests: StopRequests) -> Iterator[None]:
    """Call `note` for each signal in ASK_TO_STOP inside the context.

    Late signals of the last of the `requests` do not disturb the program that ends after the context either.
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
            signal.signal(number, requests.after(handler))
