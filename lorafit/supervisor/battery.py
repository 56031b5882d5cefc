"""Is there power enough to go on? A battery below a level pauses training, the mains let it go on."""

import contextlib

import psutil


def battery() -> tuple[float, bool] | None:
    """Percent left and whether the mains feed it; None where there is no battery, or nothing tells."""
    with contextlib.suppress(RuntimeError, OSError, AttributeError):
        found = psutil.sensors_battery()
        if found is not None and found.power_plugged is not None:
            return float(found.percent), bool(found.power_plugged)
    return None


def wanted(power: tuple[float, bool] | None, level: float, paused: bool) -> str | None:
    """The order that the worker should get: "pause", "go_on", or none. `level` is in percent; 0 never pauses."""
    if power is None:
        return "go_on" if paused else None
    percent, plugged = power
    if paused:
        return "go_on" if plugged else None
    return "pause" if not plugged and percent < level else None
