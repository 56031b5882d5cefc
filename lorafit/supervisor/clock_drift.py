"""Did the machine sleep, or was its clock set? Clocks that should go alike are compared from one look to the next."""

import sys
import time
from dataclasses import dataclass

LEAST_SECONDS = 30.0  # a shorter difference is not worth a word


@dataclass(frozen=True)
class Clocks:
    """Seconds: by the wall; since some start with sleep counted; the same without sleep."""

    wall: float
    with_sleep: float
    without_sleep: float


def read_clocks() -> Clocks:
    # On Linux CLOCK_BOOTTIME counts sleep and CLOCK_MONOTONIC does not; on macOS CLOCK_MONOTONIC does, mach_absolute_time not.
    counting = time.CLOCK_BOOTTIME if sys.platform == "linux" else time.CLOCK_MONOTONIC
    return Clocks(time.time(), time.clock_gettime(counting), time.monotonic())


def slept_seconds(before: Clocks, now: Clocks) -> float | None:
    """How long the machine slept between the two looks; None: it did not."""
    slept = (now.with_sleep - before.with_sleep) - (now.without_sleep - before.without_sleep)
    return slept if slept >= LEAST_SECONDS else None


def set_by_seconds(before: Clocks, now: Clocks) -> float | None:
    """By how much the clock was set, forth or (below 0) back; None: it was not."""
    by = (now.wall - before.wall) - (now.with_sleep - before.with_sleep)
    return by if abs(by) >= LEAST_SECONDS else None
