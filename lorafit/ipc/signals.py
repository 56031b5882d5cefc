"""Handlers for the signals that ask a program to stop."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ASK_TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
