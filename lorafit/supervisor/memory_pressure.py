"""Memory pressure and OOM kills, read from Linux's PSI and cgroup files and from macOS's pressure level."""

import contextlib
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
STALLED_PERCENT = 10.0  # of the last ten seconds in which all tasks waited for memory
FULL_SHARE = 0.97  # of the cgroup's limit, without memory that can be reclaimed at once
CRITICAL = 4  # macOS: 1 normal, 2 warning, 4 critical
MIN_READINGS = 3  # consecutive readings that must agree
UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a very large number


@dataclass(frozen=True)
class MemoryReading:
    """A reading of memory pressure; a field is None if the system does not report it."""

    stalled_percent: float | None = None
    cgroup_share: float | None = None
    macos_level: int | None = None

    @property
    def high(self) -> bool:
        """Whether one of the values is at its limit."""
        stalled = self.stalled_percent is not None and self.stalled_percent >= STALLED_PERCENT
        full = self.cgroup_share is not None and self.cgroup_share >= FULL_SHARE
        return stalled or full or (self.macos_level or 0) >= CRITICAL


def is_short(readings: Sequence[MemoryReading]) -> bool:
    """Return whether the last MIN_READINGS readings are all high, so that the next step must use less memory."""
    return len(readings) >= MIN_READINGS and all(reading.high for reading in list(readings)[-MIN_READINGS:])


def read_memory_pressure() -> MemoryReading:
    """Read the present memory pressure."""
    if platform.system() == "Darwin":
        return MemoryReading(macos_level=_macos_level())
    folder = cgroup(PROC, CGROUP)
    return MemoryReading(stalled_percent(PROC / "pressure" / "memory"), share(folder) if folder else None)


def stalled_percent(path: Path) -> float | None:
    """Return the percentage of the last ten seconds in which all tasks waited for memory (PSI, "full")."""
    found = re.search(r"^full avg10=([\d.]+)", _text(path), re.MULTILINE)
    return float(found[1]) if found else None


@lru_cache(maxsize=1)
def cgroup(proc: Path, root: Path) -> Path | None:
    """Return the folder of this process's memory cgroup, v2 or v1; None if there is none."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        _number, kinds, path = line.split(":", 2)
        for base in (
            (root / "memory",) if "memory" in kinds.split(",") else (root, root / "unified") if not kinds else ()
        ):
            for folder in (base / path.lstrip("/"), base):  # inside a container the path is often the host's
                if (folder / "memory.events").is_file() or (folder / "memory.limit_in_bytes").is_file():
                    return folder
    return None


def share(folder: Path) -> float | None:
    """Return the cgroup's memory, without reclaimable file cache, over its limit; None without a limit."""
    used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
    limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
    if not used or not limit or limit >= UNLIMITED:
        return None
    droppable = re.search(r"^(?:total_)?inactive_file (\d+)", _text(folder / "memory.stat"), re.MULTILINE)
    return (used - (int(droppable[1]) if droppable else 0)) / limit


def oom_kills() -> int:
    """Return the number of OOM kills until now, those of this cgroup plus those of the machine; 0 if unknown."""
    folder = cgroup(PROC, CGROUP)
    paths = [folder / "memory.events", folder / "memory.oom_control"] if folder else []
    counts = [re.search(r"^oom_kill (\d+)", _text(path), re.MULTILINE) for path in (*paths, PROC / "vmstat")]
    return sum(int(count[1]) for count in counts if count)


def _macos_level() -> int | None:
    cmd = ["sysctl", "-n", "kern.memorystatus_vm_pressure_level"]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        return int(subprocess.run(cmd, capture_output=True, encoding="utf-8", timeout=5).stdout)
    return None


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
