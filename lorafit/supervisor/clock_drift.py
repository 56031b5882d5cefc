"""Detection of sleep and of a changed system clock, from the differences of three clocks between two readings."""

import sys
import time
from dataclasses import dataclass

LEAST_SECONDS = 30.0  # shorter differences are not reported


@dataclass(frozen=True)
class Clocks:
    """A reading of three clocks in seconds: wall clock, monotonic clock that counts sleep, and one that does not."""

    wall: float
    with_sleep: float
    without_sleep: float


def read_clocks() -> Clocks:
    """Read the three clocks."""
    # On Linux CLOCK_BOOTTIME counts sleep and CLOCK_MONOTONIC does not.
    # On macOS CLOCK_MONOTONIC counts sleep and mach_absolute_time does not.
    counting = time.CLOCK_BOOTTIME if sys.platform == "linux" else time.CLOCK_MONOTONIC
    return Clocks(time.time(), time.clock_gettime(counting), time.monotonic())


def slept_seconds(before: Clocks, now: Clocks) -> float | None:
    """Return how many seconds the machine slept between two readings; None if it did not sleep."""
    slept = (now.with_sleep - before.with_sleep) - (now.without_sleep - before.without_sleep)
    return slept if slept >= LEAST_SECONDS else None


def clock_set_seconds(before: Clocks, now: Clocks) -> float | None:
    """Return by how many seconds the wall clock was set (negative: back); None if it was not set."""
    by = (now.wall - before.wall) - (now.with_sleep - before.with_sleep)
    return by if abs(by) >= LEAST_SECONDS else None
