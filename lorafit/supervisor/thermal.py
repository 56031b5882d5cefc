"""Is the machine too hot to work at full speed? Asked where the system tells without special rights."""

import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lorafit.messages import _

THROTTLED = Path("/sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count")
NVIDIA = ("nvidia-smi", "--query-gpu=temperature.gpu,clocks_throttle_reasons.sw_thermal_slowdown,"
          "clocks_throttle_reasons.hw_thermal_slowdown", "--format=csv,noheader,nounits")  # fmt: skip
APPLE = ("notifyutil", "-g", "com.apple.system.thermalpressurelevel")
ASK_SECONDS = 5.0  # a tool that takes longer does not answer
HEAVY = 2  # of 0 nominal, 1 moderate, 2 heavy, 3 trapping, 4 sleeping


def command(system: str, has_nvidia: bool) -> Sequence[str] | None:
    """What tells of heat on `system`; None: nothing is run there."""
    return APPLE if system == "Darwin" else NVIDIA if has_nvidia else None


def too_hot(cmd: Sequence[str], output: str) -> str | None:
    """What `cmd` printed, in words where the device slows down for heat; else None."""
    if cmd is APPLE:
        level = output.split()[-1] if output.split() else ""
        return _("The Mac is hot and slows down.") if level.isdigit() and int(level) >= HEAVY else None
    for line in output.splitlines():
        degrees, *reasons = (part.strip() for part in line.split(","))
        if any(reason.lower() == "active" for reason in reasons):
            return _("The GPU is hot ({degrees} °C) and slows down.").format(degrees=degrees)
    return None


class Thermometer:
    """Words when it gets too hot, and when that is over."""

    def __init__(self) -> None:
        self._command = command(platform.system(), shutil.which("nvidia-smi") is not None)
        self._throttled = _throttled()
        self._hot = False

    def look(self) -> str | None:
        """What is new since the last look, for the user."""
        hot = self._now()
        if bool(hot) == self._hot:
            return None
        self._hot = bool(hot)
        return hot or _("The machine has cooled down.")

    def _now(self) -> str | None:
        before, self._throttled = self._throttled, _throttled()
        if self._command is not None and (words := too_hot(self._command, _asked(self._command))):
            return words
        return _("The processor is hot and slows down.") if self._throttled > before else None


def _throttled() -> int:
    """How often the processor has slowed down for heat since it was started."""
    try:
        return int(THROTTLED.read_text())
    except (OSError, ValueError):
        return 0


def _asked(cmd: Sequence[str]) -> str:
    try:
        done = subprocess.run(list(cmd), capture_output=True, text=True, timeout=ASK_SECONDS, start_new_session=True)
        return done.stdout
    except (OSError, subprocess.SubprocessError):
        return ""
