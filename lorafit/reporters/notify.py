"""Notifications at the end of a run: the terminal bell, a desktop notification and the user's own command.

Texts are passed to the commands as separate arguments; no shell parses them.
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
from lorafit.messages import _, utf8_words
from lorafit.reporters.terminal.console import print_safe

LONG_SECONDS = 60.0  # for a shorter run, the user is still watching the terminal
WAIT_SECONDS = 10.0  # time limit of a notification command
SCRIPT = ("on run argv", "display notification (item 1 of argv) with title (item 2 of argv)", "end run")


def desktop_command(system: str, title: str, text: str) -> list[str]:
    """Return the command that shows `text` on the desktop of `system`: osascript on macOS, else notify-send."""
    if system == "Darwin":
        lines = [word for line in SCRIPT for word in ("-e", line)]
        return ["osascript", *lines, text, title]
    return ["notify-send", "--app-name=lorafit", "--", title, text]


def own_command(command: str, title: str, text: str) -> list[str]:
    """Return the user's `command`, split as a shell would, with title and text appended. Raise ConfigError."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        words, found = [], str(error)
    else:
        found = command
    if not words:
        fix = _("Give a program and its arguments, e.g. {example}.").format(example="--notify 'ntfy publish my-topic'")
        raise ConfigError(_("--notify needs a valid command to run."), where="--notify", found=found, fix=fix)
    return [*words, title, text]


class Notifier:
    """Reporter that announces the end of a run once. A run shorter than LONG_SECONDS starts only the user's command."""

    def __init__(self, command: str | None = None) -> None:
        if command is not None:
            own_command(command, "", "")  # raises ConfigError before the run starts
        self._command = command
        self._began = time.monotonic()
        self._run = ""
        self._message: str | None = None

    def on_event(self, event: Event) -> None:
        """Record how the run ends."""
        match event:
            case Started():
                self._run = Path(event.run).name
            case Finished():
                self._message = _("Training finished: {run}").format(run=self._run)
            case Stopped():
                self._message = _("Training stopped after step {step}: {run}").format(step=event.step, run=self._run)
            case Failed():
                self._message = _("Training failed after step {step}: {run}").format(step=event.step, run=self._run)

    def close(self) -> None:
        """Send the notifications, if the run has ended."""
        if self._message is None:
            return
        if time.monotonic() - self._began >= LONG_SECONDS:
            if sys.stderr is not None and sys.stderr.isatty():
                print("\a", end="", file=sys.stderr, flush=True)
            _run(desktop_command(platform.system(), "lorafit", self._message))
        if self._command is not None and not _run(own_command(self._command, "lorafit", self._message)):
            text = _("The --notify command failed: {command}").format(command=self._command)
            print_safe(text, stderr=True)


def _run(command: Sequence[str]) -> bool:
    """Run `command` and return whether it exits with 0 within WAIT_SECONDS; a missing program counts as a failure."""
    quiet = subprocess.DEVNULL
    try:
        done = subprocess.run(utf8_words(command), stdin=quiet, stdout=quiet, stderr=quiet, timeout=WAIT_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
