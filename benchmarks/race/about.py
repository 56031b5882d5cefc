"""On what was it measured? Machine, system and versions: figures of another are another's."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from lorafit.hardware import detect

ROOT = Path(__file__).parents[2]


def machine_facts() -> dict[str, Any]:
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
    """The code's commit, "+" where files of the package differ from it; empty where there is no git."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "lorafit"], capture_output=True, check=False)
    return head.stdout.strip() + ("+" if changed.returncode else "")
