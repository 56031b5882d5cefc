"""What was the worker told to do, and how does it show that it lives? Its end of the pipes; the loop looks here between steps."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, overload

from lorafit.ipc.protocol import Beat, Message, Order, read_order

Item = TypeVar("Item")
BEAT = Beat()
BEAT_SECONDS = 1.0  # at most one beat in this time goes over the pipe
GRACE_SECONDS = 60.0  # for the step and its checkpoint, once nobody is there any more
RECYCLE = 1000  # no signal has this number
HANG_UP = 1  # SIGHUP: what a vanished supervisor counts as


def _to_nobody(_message: Message) -> None:
    pass


class Link:
    """Orders as they stand, and a way to say something; without a supervisor there are none, and nobody hears.

    A thread writes the orders and the loop reads them: each is a single assignment.
    """

    def __init__(self, send: Callable[[Message], None] = _to_nobody, owner: int | None = None) -> None:
        self.send = send
        self.owner = owner or os.getpid()  # the process that a user stops with Ctrl-C
        self.stop_signal: int | None = None
        self.recycle = False
        self.paused = False
        self.save_seconds: float | None = None  # None: as the loop is used to
        self.writes = False  # a run's folder is ours, with steps to be saved
        self.must_shrink = False  # before the first step: the one before died of what it took
        self._shrink = False
        self._texts: deque[str] = deque()
        self._beaten = 0.0

    def take(self, order: Order) -> None:
        """Note what `order` says."""
        match order.name:
            case "stop":
                self.stop_signal = order.signal
            case "recycle":
                self.recycle = True
            case "shrink":
                self._shrink = True
            case "pause" | "go_on":
                self.paused = order.name == "pause"
            case "say":
                self._texts.append(order.text)

    @property
    def leave(self) -> int:
        """The signal for which to save and leave, RECYCLE to be followed by another process; 0: go on."""
        return self.stop_signal or (RECYCLE if self.recycle else 0)

    def take_shrink(self) -> bool:
        """Whether less memory was asked for since the last call."""
        asked, self._shrink = self._shrink or self.must_shrink, False
        return asked

    def take_texts(self) -> list[str]:
        """What the supervisor wants to stand in the run's events."""
        return [self._texts.popleft() for _i in range(len(self._texts))]

    def beat(self, message: Message = BEAT) -> None:
        """The engine went on: something to say, though not too often."""
        if (now := time.monotonic()) - self._beaten >= BEAT_SECONDS:
            self._beaten = now
            self.send(message)

    def beating(
        self, items: Sequence[Item], message: Callable[[float], Message] = lambda _share: BEAT
    ) -> Sequence[Item]:
        """`items`, with a beat each time that one is taken up: the message for the share of them (0 to 1) before it."""
        return _BeatThread(items, lambda index: self.beat(message(index / max(len(items), 1))))


class _BeatThread(Sequence[Item]):
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


def listen(link: Link, lines: Iterable[str]) -> None:
    """Hear the orders in `lines` in a thread. Where they end, the supervisor is gone: what is done is saved, then all ends.

    Where nothing is to be saved it ends at once, before it takes a run's folder from a process that goes on with it.
    """
    threading.Thread(target=_hear, args=(link, lines), daemon=True).start()


def _hear(link: Link, lines: Iterable[str]) -> None:
    for line in lines:
        link.take(read_order(line))
    link.paused = False
    link.stop_signal = link.stop_signal or HANG_UP
    if link.writes:
        time.sleep(GRACE_SECONDS)
    os._exit(128 + HANG_UP)
