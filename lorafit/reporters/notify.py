"""How does a person learn that a run is over? The terminal's bell, the desktop's own notification, a command of their choice.

Texts go to each as arguments of their own: no shell reads them.
"""

import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lorafit.errors import ConfigError
from lorafit.events import Event, Failed, Finished, Started, Stopped
from lorafit.messages import _

LONG_SECONDS = 60.0  # whoever started a shorter run is still looking
WAIT_SECONDS = 10.0
SCRIPT = ("on run argv", "display notification (item 1 of argv) with title (item 2 of argv)", "end run")


def desktop_command(system: str, title: str, text: str) -> list[str]:
    """What shows `text` on the desktop of `system`."""
    if system == "Darwin":
        lines = [word for line in SCRIPT for word in ("-e", line)]
        return ["osascript", *lines, text, title]
    return ["notify-send", "--app-name=lorafit", "--", title, text]


def own_command(command: str, title: str, text: str) -> list[str]:
    """The user's `command`, split as a shell would, with title and text behind it. Raises ConfigError."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        words, found = [], str(error)
    else:
        found = command
    if not words:
        fix = _("Give a program and its arguments, e.g. {example}.").format(example="--notify 'ntfy publish my-topic'")
        raise ConfigError(_("--notify is no command."), where="--notify", found=found, fix=fix)
    return [*words, title, text]


class Notifier:
    """Tells of the end of a run, once. Short runs get the user's own command only."""

    def __init__(self, command: str | None = None) -> None:
        if command is not None:
            own_command(command, "", "")  # what is wrong with it is told before anything is done
        self._command = command
        self._began = time.monotonic()
        self._run = ""
        self._end: str | None = None

    def on_event(self, event: Event) -> None:
        """Take note of how it ends."""
        match event:
            case Started():
                self._run = Path(event.run).name
            case Finished():
                self._end = _("Finished: {run}").format(run=self._run)
            case Stopped():
                self._end = _("Stopped after step {step}: {run}").format(step=event.step, run=self._run)
            case Failed():
                self._end = _("Broke off after step {step}: {run}").format(step=event.step, run=self._run)

    def close(self) -> None:
        """Tell."""
        if self._end is None:
            return
        if time.monotonic() - self._began >= LONG_SECONDS:
            if sys.stderr is not None and sys.stderr.isatty():
                print("\a", end="", file=sys.stderr, flush=True)
            _run(desktop_command(platform.system(), "lorafit", self._end))
        if self._command is not None and not _run(own_command(self._command, "lorafit", self._end)):
            text = _("The command of --notify failed: {command}").format(command=self._command)
            print(text, file=sys.stderr)


def _run(command: Sequence[str]) -> bool:
    """Whether `command` ran well; one that is not there or takes too long did not."""
    quiet = subprocess.DEVNULL
    try:
        done = subprocess.run(list(command), stdin=quiet, stdout=quiet, stderr=quiet, timeout=WAIT_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
