"""How does the machine stay awake while it trains? By the system's own tool, in a session that Ctrl-C does not reach.

Closing a laptop's lid puts it to sleep all the same; training then goes on where it was when the lid opens.
"""

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterator

from lorafit.messages import _


def command(system: str, pid: int) -> list[str] | None:
    """What keeps `system` awake for as long as process `pid` lives, or None where nothing is known."""
    if system == "Darwin":
        return ["caffeinate", "-i", "-w", str(pid)]
    if system == "Linux":
        # `cat` holds the lock, and ends when our end of its input closes, however we end.
        why = _("training")
        return ["systemd-inhibit", "--what=idle:sleep", "--who=lorafit", f"--why={why}", "--mode=block", "cat"]
    return None


@contextlib.contextmanager
def keep_awake() -> Iterator[None]:
    """No sleep from idling inside this context; where the tool is missing or refuses, silently nothing."""
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
        return subprocess.Popen(cmd, stdin=stdin, stdout=quiet, stderr=quiet, start_new_session=True)
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
