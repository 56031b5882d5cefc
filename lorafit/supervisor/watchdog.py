"""Watchdog for a hanging worker. Beats come from the engine's progress, not a timer; the time limit adapts to them."""

from dataclasses import dataclass

IDLE_SHARE = 0.05  # of a core; a process that uses less is idle
BUSY_PATIENCE = 10  # a busy process may take this many times longer: a large model's micro-batch on a slow CPU
LONGEST_SILENCE_FACTOR = 10  # the limit is at least this many times the longest silence between beats so far
MOST_TICK_SECONDS = 5.0  # longer gaps between two checks are not the worker's: this process or the machine slept


@dataclass
class Watchdog:
    """The silence of one worker. Over `limit_seconds` of idle silence it hangs; busy time counts 1 / BUSY_PATIENCE.

    Points in time are time.monotonic().
    """

    limit_seconds: float
    silent_seconds: float = 0.0
    _longest: float = 0.0
    _beat: float | None = None
    _looked: float | None = None
    _cpu: float = 0.0

    def beat(self, now: float) -> None:
        """Note a sign of progress."""
        if self._beat is not None and self._looked is not None:
            self._longest = max(self._longest, self.silent_seconds)
        self._beat, self.silent_seconds = now, 0.0

    def hangs(self, now: float, cpu_seconds: float, stopped: bool) -> bool:
        """Return whether the worker has been silent for too long. Time while it is `stopped` (SIGSTOP) does not count.

        `cpu_seconds` is the CPU time that the worker has used until `now`.
        """
        if self._looked is not None and not stopped:
            passed = now - self._looked
            passed = passed if passed <= MOST_TICK_SECONDS else 0.0
            busy = cpu_seconds - self._cpu > IDLE_SHARE * passed
            self.silent_seconds += passed / BUSY_PATIENCE if busy else passed
        self._looked, self._cpu = now, cpu_seconds
        return self.silent_seconds > max(self.limit_seconds, LONGEST_SILENCE_FACTOR * self._longest)
