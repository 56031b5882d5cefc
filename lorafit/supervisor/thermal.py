"""Thermal throttling of CPU and GPU, from sources that need no special permissions."""

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
ASK_SECONDS = 5.0  # timeout of the command; after it there is no reading
HEAVY = 2  # of 0 nominal, 1 moderate, 2 heavy, 3 trapping, 4 sleeping


def command(system: str, has_nvidia: bool) -> Sequence[str] | None:
    """Return the command that reports throttling on `system`; None if there is none."""
    return APPLE if system == "Darwin" else NVIDIA if has_nvidia else None


def throttling_text(cmd: Sequence[str], output: str) -> str | None:
    """Return a text for the user if `output` of `cmd` reports thermal throttling, else None."""
    if cmd is APPLE:
        level = output.split()[-1] if output.split() else ""
        return _("The Mac is hot and slows down.") if level.isdigit() and int(level) >= HEAVY else None
    for line in output.splitlines():
        degrees, *reasons = (part.strip() for part in line.split(","))
        if any(reason.lower() == "active" for reason in reasons):
            return _("The GPU is hot ({degrees} °C) and slows down.").format(degrees=degrees)
    return None


class ThrottlingDetector:
    """A detector of the start and the end of thermal throttling."""

    def __init__(self) -> None:
        self._command = command(platform.system(), shutil.which("nvidia-smi") is not None)
        self._throttled = _throttled()
        self._hot = False

    def look(self) -> str | None:
        """Return a text for the user if throttling started or ended since the last call, else None."""
        hot = self._now()
        if bool(hot) == self._hot:
            return None
        self._hot = bool(hot)
        return hot or _("The machine has cooled down.")

    def _now(self) -> str | None:
        before, self._throttled = self._throttled, _throttled()
        if self._command is not None and (words := throttling_text(self._command, _output_of(self._command))):
            return words
        return _("The CPU is hot and slows down.") if self._throttled > before else None


def _throttled() -> int:
    """Return how often the CPU has throttled since boot; 0 if unknown."""
    try:
        return int(THROTTLED.read_text("ascii"))
    except (OSError, ValueError):
        return 0


def _output_of(cmd: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            list(cmd),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=ASK_SECONDS,
            start_new_session=True,
        )
        return done.stdout
    except (OSError, subprocess.SubprocessError):
        return ""
