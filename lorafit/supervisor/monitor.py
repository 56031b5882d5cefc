"""Monitoring of a live worker: memory, power, temperature, clocks and progress. It yields orders to the worker."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil

from lorafit.ipc.protocol import Order
from lorafit.messages import _
from lorafit.supervisor import battery as power
from lorafit.supervisor import memory_pressure
from lorafit.supervisor.clock_drift import Clocks, clock_set_seconds, read_clocks, slept_seconds
from lorafit.supervisor.thermal import ThrottlingDetector
from lorafit.supervisor.watchdog import Watchdog
from lorafit.units import seconds_text

MEMORY_SECONDS, POWER_SECONDS, HEAT_SECONDS = 5.0, 30.0, 60.0  # between readings
USER, BATTERY = "user", "battery"  # the causes of a pause
REST_SECONDS = 120.0  # from a shrink order to the next one; doubled each time


@dataclass(frozen=True)
class Sensors:
    """The sensors of the monitor. Each is a function, so that a simulated machine can replace this one."""

    memory: Callable[[], memory_pressure.MemoryReading] = memory_pressure.read_memory_pressure
    battery: Callable[[], tuple[float, bool] | None] = power.read_battery
    heat: Callable[[], str | None] = field(default_factory=lambda: ThrottlingDetector().look)
    clocks: Callable[[], Clocks] = read_clocks


class Interval:
    """A timer that is due every `seconds`, first at `last` + `seconds`."""

    def __init__(self, seconds: float, last: float = -math.inf) -> None:
        self._seconds, self._last = seconds, last

    def due(self, now: float) -> bool:
        """Return whether the interval has passed; if so, start the next one."""
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


class Monitor:
    """The monitor of one worker. `pause_battery` is in percent; `hang_seconds` is the setting of that name.

    The worker waits while the user or the battery pauses it. The user's order to continue overrides the battery.
    """

    def __init__(self, pause_battery: float, hang_seconds: float, senses: Sensors | None = None) -> None:
        self.watchdog = Watchdog(hang_seconds)
        self._pauses: set[str] = set()  # USER, BATTERY
        self._pause_battery, self._sensors = pause_battery, senses or Sensors()
        self._memory, self._power, self._heat = (
            Interval(MEMORY_SECONDS),
            Interval(POWER_SECONDS),
            Interval(HEAT_SECONDS),
        )
        self._readings: deque[memory_pressure.MemoryReading] = deque(maxlen=memory_pressure.MIN_READINGS)
        self._shrink_timer, self._shrink_seconds = Interval(0.0), REST_SECONDS
        self._clocks = self._sensors.clocks()

    def orders(self, now: float) -> Iterator[Order]:
        """Yield the orders to the worker that the sensors call for; `now` is time.monotonic()."""
        yield from self._look_at_clocks()
        if self._power.due(now):
            yield from self._look_at_power()
        if self._memory.due(now):
            yield from self._look_at_memory(now)
        if self._heat.due(now) and (words := self._sensors.heat()):
            yield Order("say", text=words)

    @property
    def paused(self) -> bool:
        return bool(self._pauses)

    @property
    def paused_by_user(self) -> bool:
        return USER in self._pauses

    def pause(self, by: str, text: str) -> Order:
        """Return the order that pauses the worker; `by` is USER or BATTERY."""
        self._pauses.add(by)
        return Order("pause", text=text)

    def go_on(self, by: str, text: str) -> Order:
        """Return the order that continues the training, or only says so while another cause pauses it."""
        if by == USER and BATTERY in self._pauses:
            self._pause_battery = 0.0
            self._pauses.clear()
        self._pauses.discard(by)
        return Order("say" if self._pauses else "go_on", text=text)

    def hangs(self, pid: int, now: float) -> bool:
        """Return whether process `pid` has made no progress for too long."""
        try:
            process = psutil.Process(pid)
            times, stopped = process.cpu_times(), process.status() == psutil.STATUS_STOPPED
        except psutil.Error:
            return False
        return self.watchdog.hangs(now, times.user + times.system, stopped or self.paused)

    def _look_at_clocks(self) -> Iterator[Order]:
        before, self._clocks = self._clocks, self._sensors.clocks()
        if slept := slept_seconds(before, self._clocks):
            text = _("The machine slept for {time} (lid closed?); training continues where it stopped.")
            yield Order("say", text=text.format(time=seconds_text(slept)))
        if by := clock_set_seconds(before, self._clocks):
            text = _("The system clock was changed by {time}; training does not depend on it.")
            yield Order("say", text=text.format(time=("-" if by < 0 else "+") + seconds_text(abs(by))))

    def _look_at_power(self) -> Iterator[Order]:
        found = self._sensors.battery()
        order = power.battery_order(found, self._pause_battery, BATTERY in self._pauses)
        if order == "pause":
            text = _(
                "On battery at {percent:.0f}%: training is saved and paused until there is power (--pause_battery)."
            )
            yield self.pause(BATTERY, text.format(percent=found[0] if found else 0))
        elif order == "go_on":
            held = _("Power is back; the training stays paused by the user.")
            yield self.go_on(BATTERY, held if self.paused_by_user else _("Power is back: training continues."))

    def _look_at_memory(self, now: float) -> Iterator[Order]:
        self._readings.append(self._sensors.memory())
        if memory_pressure.is_short(self._readings) and self._shrink_timer.due(now):
            self._readings.clear()
            self._shrink_timer = Interval(self._shrink_seconds, now)
            self._shrink_seconds *= 2
            yield Order("shrink")
