"""Does the worker still get on? Beats come from the engine's progress, not from a clock; how long it may be silent is learned."""

from dataclasses import dataclass

IDLE_SHARE = 0.05  # of a core: below it the process does nothing
BUSY_PATIENCE = 10  # times longer is waited for one that computes: a micro-batch of a large model on a slow processor
LONGEST_TIMES = 10  # the longest pause between beats that was seen, so many times, is waited for in any case
MOST_TICK_SECONDS = 5.0  # a longer pause between two looks was our own: stopped, or the machine slept


@dataclass
class Watchdog:
    """How long nothing was heard; `limit_seconds` of it, spent doing nothing, are too long. Times are time.monotonic()."""

    limit_seconds: float
    silent_seconds: float = 0.0
    _longest: float = 0.0
    _beat: float | None = None
    _looked: float | None = None
    _cpu: float = 0.0

    def beat(self, now: float) -> None:
        """A sign of progress."""
        if self._beat is not None and self._looked is not None:
            self._longest = max(self._longest, self.silent_seconds)
        self._beat, self.silent_seconds = now, 0.0

    def hangs(self, now: float, cpu_seconds: float, stopped: bool) -> bool:
        """Whether it is silent for too long, by what is seen now; `stopped`: somebody has stopped the process (SIGSTOP)."""
        if self._looked is not None and not stopped:
            passed = min(now - self._looked, MOST_TICK_SECONDS)
            busy = cpu_seconds - self._cpu > IDLE_SHARE * passed
            self.silent_seconds += passed / BUSY_PATIENCE if busy else passed
        self._looked, self._cpu = now, cpu_seconds
        return self.silent_seconds > max(self.limit_seconds, LONGEST_TIMES * self._longest)
