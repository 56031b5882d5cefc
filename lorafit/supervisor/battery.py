"""Battery level: training pauses on a battery below a level, and continues on mains power."""

import contextlib

import psutil


def read_battery() -> tuple[float, bool] | None:
    """Return the charge in percent and whether mains power is connected; None without a battery or a reading."""
    with contextlib.suppress(RuntimeError, OSError, AttributeError):
        found = psutil.sensors_battery()
        if found is not None and found.power_plugged is not None:
            return float(found.percent), bool(found.power_plugged)
    return None


def battery_order(power: tuple[float, bool] | None, level: float, paused: bool) -> str | None:
    """Return the order for the worker: "pause", "go_on", or None. `level` is in percent; 0 never pauses."""
    if power is None:
        return "go_on" if paused else None
    percent, plugged = power
    if paused:
        return "go_on" if plugged else None
    return "pause" if not plugged and percent < level else None
