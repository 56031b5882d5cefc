"""Machine, operating system and versions of a measurement: figures are comparable only where these are equal."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from lorafit.hardware import detect

ROOT = Path(__file__).parents[2]


def machine_facts() -> dict[str, Any]:
    """Return the chip, cores, memory, operating system and versions of this machine."""
    machine = detect.detect_machine()
    return {
        "chip": machine.chip,
        "cores": machine.cores,
        "memory_bytes": machine.memory_bytes,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "lorafit": f"{metadata.version('lorafit')} ({commit()})",
    }


def commit() -> str:
    """Return the short commit hash of the code, with "+" if files of lorafit/ differ from it or git fails."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "lorafit"], capture_output=True, check=False)
    return head.stdout.strip() + ("+" if changed.returncode else "")
