"""Sleep prevention during training with the system's own tool, in a process session that Ctrl-C does not reach.

Closing the lid of a laptop still puts the machine to sleep. Training continues when the lid opens.
"""

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterator

from lorafit.messages import _, utf8_words


def command(system: str, pid: int) -> list[str] | None:
    """Return the command that keeps `system` awake while process `pid` lives, or None for an unknown system."""
    if system == "Darwin":
        return ["caffeinate", "-i", "-w", str(pid)]
    if system == "Linux":
        # `cat` holds the lock. `cat` exits when its stdin closes, which also happens if this process crashes.
        why = _("training")
        return ["systemd-inhibit", "--what=idle:sleep", "--who=lorafit", f"--why={why}", "--mode=block", "cat"]
    return None


@contextlib.contextmanager
def keep_awake() -> Iterator[None]:
    """Prevent idle sleep inside this context. Do nothing if the tool is missing or fails."""
    tool = _start(command(platform.system(), os.getpid()))
    try:
        yield
    finally:
        if tool is not None:
            _end(tool)


def _start(cmd: list[str] | None) -> subprocess.Popen[bytes] | None:
    if cmd is None:
        return None
    stdin = subprocess.PIPE if cmd[-1] == "cat" else subprocess.DEVNULL
    quiet = subprocess.DEVNULL
    try:
        return subprocess.Popen(utf8_words(cmd), stdin=stdin, stdout=quiet, stderr=quiet, start_new_session=True)
    except OSError:
        return None


def _end(tool: subprocess.Popen[bytes]) -> None:
    if tool.stdin:
        tool.stdin.close()
    tool.terminate()
    try:
        tool.wait(timeout=5)
    except subprocess.TimeoutExpired:
        tool.kill()
        tool.wait()
