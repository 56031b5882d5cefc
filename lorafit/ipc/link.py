"""The worker's end of the pipes to the supervisor: orders in, messages out. The loop reads it between steps."""

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar, overload

from lorafit.ipc.protocol import Beat, Message, Order, read_order
from lorafit.run_folders.directory import ORPHAN_SECONDS, RunDir
from lorafit.run_folders.orders import PAUSE, POLL_SECONDS, STOP, order_text, take_order

Item = TypeVar("Item")
BEAT = Beat()
BEAT_SECONDS = 1.0  # the pipe carries at most one beat in this time
RECYCLE = 1000  # the value of `stop_code` for a restart in a new process; no signal has this number
HANG_UP = 1  # SIGHUP: a vanished supervisor counts as this signal


class LeaveNow(Exception):
    """The user asked twice to stop: the running step or evaluation is abandoned."""


def _drop_message(_message: Message) -> None:
    pass


class Link:
    """The current orders, and `send` for messages. Without a supervisor there are no orders, and messages are dropped.

    A thread writes the orders and the loop reads them. Each write is atomic (an assignment or a deque append).
    """

    def __init__(self, send: Callable[[Message], None] = _drop_message, owner: int | None = None) -> None:
        self.send = send
        self.owner = owner or os.getpid()  # the process that a user stops with Ctrl-C
        self.stop_signal: int | None = None
        self.haste = False  # stop without finishing the step, if `may_leave`
        self.may_leave = False  # a step is done, and no other process waits for this one
        self.run: RunDir | None = None  # the run, once its folder was moved
        self.recycle = False
        self.paused = False
        self.save_seconds: float | None = None  # seconds between checkpoints; None: the loop's own default
        self.holds_run = False  # True once this process holds a run folder and has steps to save
        self.must_shrink = False  # shrink before the first step: the previous process used too much memory or GPU time
        self._shrink = False
        self._orders: deque[Order] = deque()  # to be written as events: pause, go_on, say
        self._beaten = 0.0

    def take(self, order: Order) -> None:
        """Record `order`."""
        match order.name:
            case "stop":
                self.stop_signal = order.signal
            case "haste":
                self.haste = True
            case "recycle":
                self.recycle = True
            case "shrink":
                self._shrink = True
            case "pause":
                self.paused = True  # before its event is due: the loop saves first
                self._orders.append(order)
            case "go_on":
                self._orders.append(order)
                self.paused = False
            case "say":
                self._orders.append(order)

    @property
    def stop_code(self) -> int:
        """The signal for which to save and stop; RECYCLE for a restart in a new process; 0 to continue."""
        return self.stop_signal or (RECYCLE if self.recycle else 0)

    def take_shrink(self) -> bool:
        """Return True if less memory was requested since the last call, or if `must_shrink` is set."""
        asked, self._shrink = self._shrink or self.must_shrink, False
        return asked

    def take_orders(self) -> list[Order]:
        """Return and remove the orders that belong into the run's events: pause, go_on and say."""
        return [self._orders.popleft() for _i in range(len(self._orders))]

    def beat(self, message: Message = BEAT) -> None:
        """Send `message` as a sign of progress, at most once in BEAT_SECONDS."""
        if (now := time.monotonic()) - self._beaten >= BEAT_SECONDS:
            self._beaten = now
            self.send(message)

    def with_beats(
        self, items: Sequence[Item], message: Callable[[float], Message] = lambda _share: BEAT
    ) -> Sequence[Item]:
        """Return `items` as a sequence that sends a beat at each access, or raises LeaveNow.

        `message` gets the share of the items (0 to 1) before the accessed one.
        """

        def access(index: int) -> None:
            if self.haste and self.may_leave:
                raise LeaveNow
            self.beat(message(index / max(len(items), 1)))

        return _BeatingSequence(items, access)


class _BeatingSequence(Sequence[Item]):
    def __init__(self, items: Sequence[Item], beat: Callable[[int], None]) -> None:
        self._items, self._beat = items, beat

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        self._beat(index if isinstance(index, int) else index.start or 0)
        return self._items[index]


def receive_orders(link: Link, lines: Iterable[str]) -> None:
    """Read orders from `lines` in a thread. At the end of `lines` the supervisor is gone: save, then exit.

    With nothing to save, exit at once, before this process takes the run folder from a process that resumes the run.
    """
    threading.Thread(target=_read_orders, args=(link, lines), daemon=True).start()


@contextlib.contextmanager
def follow_order_file(link: Link, run: RunDir) -> Iterator[None]:
    """Within the block, obey the user's orders in the run's folder; used where no supervisor reads them."""
    over = threading.Event()

    def follow() -> None:
        while not over.wait(POLL_SECONDS):
            order = take_order(link.run or run, link.owner)
            if order == STOP:
                link.stop_signal = link.stop_signal or signal.SIGTERM
            elif order is not None:
                link.take(Order("pause" if order == PAUSE else "go_on", text=order_text(order, link.run or run)))

    threading.Thread(target=follow, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _read_orders(link: Link, lines: Iterable[str]) -> None:
    for line in lines:
        link.take(read_order(line))
    link.paused = False
    link.stop_signal = link.stop_signal or HANG_UP
    if link.holds_run:
        time.sleep(ORPHAN_SECONDS)
    os._exit(128 + HANG_UP)
