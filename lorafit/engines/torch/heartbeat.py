"""Heartbeats: each rank writes a counter into the shared store and reads the counters of the other ranks.

A rank that leaves writes that fact, with its error if any, so that the other ranks need not wait for a timeout.
"""

import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from lorafit.distributed.collectives import RankLost
from lorafit.distributed.launch import FindFailure, RankInfo
from lorafit.messages import _

BEAT_SECONDS = 1.0
BLAME_SECONDS = 5.0
PATIENCE_BEATS = 60  # counted in own beats: after a laptop's sleep no rank is late
# A main thread that waits in one of torch's own collectives (sharded weights) cannot check for lost ranks: the process
# exits this long after a loss. A main thread in a long step of its own would check within this time.
GRACE_SECONDS = 600.0


@dataclass
class RankPulse:
    """State of another rank.

    `beat` is its last counter; `missed_beats` counts own beats since `beat` changed; `left`: the rank wrote that it leaves.
    """

    beat: int = -1
    missed_beats: int = 0
    left: bool = False


class Heartbeat:
    """The thread that writes this rank's heartbeat and watches the other ranks; `lost` is set if one is lost.

    `store` is a connection for this thread alone, since a store's client waits for one answer at a time. `dead` returns
    the rank and reason of a process on this machine that is known to have died, else None.
    """

    def __init__(self, store: Any, place: RankInfo, dead: FindFailure) -> None:
        self.store, self.place, self.dead = store, place, dead
        self.lost: RankLost | None = None
        self._pulses = {rank: RankPulse() for rank in range(place.count) if rank != place.rank}
        self._beat, self._leaving = 0, threading.Event()
        self._lock = threading.Lock()
        self._write_fact({"beat": 0})
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Start to watch the other ranks; each has written its first beat by now."""
        self._thread.start()

    def check(self) -> None:
        """Raise RankLost if a rank is lost."""
        if self.lost is not None:
            raise self.lost

    def find_lost_rank(self) -> RankLost | None:
        """Return the lost rank behind a broken connection, or None if none is found within BLAME_SECONDS."""
        deadline = time.monotonic() + BLAME_SECONDS
        while self.lost is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.lost

    def leave(self, error: BaseException | None) -> None:
        """Stop the thread, and write the reason for the other ranks: `error`, or None after a normal end."""
        self._leaving.set()
        if self._thread.is_alive():
            self._thread.join(2 * BEAT_SECONDS)
        if isinstance(error, RankLost):
            self._write_fact({"left": error.found, "rank": error.rank})
        else:
            self._write_fact({"left": None if error is None else str(error)})

    def wait_for_exits(self, seconds: float) -> None:
        """Wait at most `seconds` until the other ranks have left or died: the leader keeps the store and goes last."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.dead():
            self._read_pulses()
            if all(pulse.left for pulse in self._pulses.values()):
                return
            time.sleep(0.05)

    def _run(self) -> None:
        found_at = None
        while not self._leaving.wait(BEAT_SECONDS):
            if self.lost is None:
                self._beat += 1
                self._write_fact({"beat": self._beat})
                self._read_pulses()
            elif found_at is None:
                found_at = time.monotonic()
            elif time.monotonic() - found_at > GRACE_SECONDS:
                print(self.lost, file=sys.stderr, flush=True)
                os._exit(2)

    def _write_fact(self, fact: dict[str, Any]) -> None:
        try:
            with self._lock:
                self.store.set(f"pulse/{self.place.rank}", json.dumps(fact))
        except RuntimeError as error:
            self._record_lost_store(error)

    def _read_pulses(self) -> None:
        try:
            with self._lock:
                facts = self.store.multi_get([f"pulse/{rank}" for rank in self._pulses])
        except RuntimeError as error:
            self._record_lost_store(error)
            return
        if dead := self.dead():
            self._record_loss(*dead)
        for (rank, pulse), fact in zip(self._pulses.items(), facts, strict=True):
            self._update_pulse(rank, pulse, json.loads(fact))

    def _update_pulse(self, rank: int, pulse: RankPulse, fact: dict[str, Any]) -> None:
        if "left" in fact:
            pulse.left = True
            if fact["left"] is not None:
                self._record_loss(fact.get("rank", rank), fact["left"], told="rank" not in fact)
            return
        pulse.missed_beats = 0 if fact["beat"] != pulse.beat else pulse.missed_beats + 1
        pulse.beat = fact["beat"]
        if pulse.missed_beats >= PATIENCE_BEATS:
            self._record_loss(rank, _("the process does not respond"))

    def _record_lost_store(self, error: RuntimeError) -> None:
        """Record rank 0 as lost, since it (or torchrun beside it) keeps the store; rank 0 itself records rank 1."""
        if self.place.leads:
            self._record_loss(1, error)
        elif not self._pulses[0].left:
            self._record_loss(0, _("the connection to the process is closed"))

    def _record_loss(self, rank: int, reason: object, told: bool = False) -> None:
        if self.lost is None and not self._leaving.is_set():
            self.lost = RankLost(rank, self.place.count, reason, told)
