"""Signals that ask a program to stop: which of them are one request, and when they are obeyed."""

import signal
import time
from types import FrameType

import pytest

from lorafit.ipc import signals
from lorafit.ipc.signals import StopRequests, handle_signals


def test_late_signals_of_a_request_do_not_disturb_the_end_of_the_program_and_others_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signals, "ONE_REQUEST_SECONDS", 0.2)
    requests, noted, obeyed = StopRequests(), list[int](), list[int]()

    def note(_number: int, _frame: FrameType | None) -> None:
        noted.append(requests.hear())

    before = signal.signal(signal.SIGTERM, lambda number, _frame: obeyed.append(number))
    try:
        with handle_signals(note, requests):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert (noted, obeyed) == ([1, 1], [])
        time.sleep(0.3)
        signal.raise_signal(signal.SIGTERM)
        assert (noted, obeyed) == ([1, 1], [signal.SIGTERM])
    finally:
        signal.signal(signal.SIGTERM, before)


def test_without_a_request_the_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in signals.ASK_TO_STOP]
    with handle_signals(lambda _number, _frame: None, StopRequests()):
        pass
    assert [signal.getsignal(number) for number in signals.ASK_TO_STOP] == before
