"""Displays of a running training: one live bar on a terminal, occasional lines elsewhere."""

from collections.abc import Callable
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.status import Status
from rich.text import Text

from lorafit.events import StepDone
from lorafit.messages import _, phrases
from lorafit.reporters.terminal.throughput import Throughput
from lorafit.units import bytes_text, seconds_text

LINE_SECONDS = 10.0  # between plain lines; in long runs a sixtieth of the elapsed time
LINE_SHARE = 0.05  # of all steps; a plain line is printed at the latest after this share


class Display(Protocol):
    """A display of stages and steps."""

    def stage(self, text: str) -> None:
        """Show that a long operation starts."""
        ...

    def progress(self, text: str) -> None:
        """Show the progress of the stage; only a live display does."""
        ...

    def start(self, pace: Throughput, step: int, time: float) -> None:
        """Show that training starts at `time` (Unix time), after `step` steps."""
        ...

    def step(self, event: StepDone) -> None:
        """Show a finished step; `pace` already includes it."""
        ...

    def close(self) -> None:
        """Restore the terminal."""
        ...


def open_display(console: Console) -> Display:
    """Return a live display for an interactive terminal, or plain lines for a file, a pipe or a dumb terminal."""
    return LiveDisplay(console) if console.is_interactive and not console.is_dumb_terminal else PlainDisplay(console)


class LiveDisplay:
    """A spinner for stages, then one bar that stays at the bottom."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def stage(self, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, figures=text, left="")
            return
        self._end_status()
        self._status = self._console.status(Text(text))
        self._status.start()

    def progress(self, text: str) -> None:
        self.stage(text)

    def start(self, pace: Throughput, step: int, time: float) -> None:
        self.close()
        self._throughput = pace
        self._bar = progress_bar(self._console)
        self._task = self._bar.add_task("", total=pace.steps, completed=step, figures="", left="")
        self._bar.start()

    def step(self, event: StepDone) -> None:
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=event.step,
                figures=figures_text(self._throughput, event),
                left=left_text(self._throughput),
            )

    def close(self) -> None:
        self._end_status()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _end_status(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def progress_bar(console: Console, disable: bool = False, clock: Callable[[], float] | None = None) -> Progress:
    """Return a progress bar: steps, bar, loss and speed, elapsed time by `clock`, and time left.

    `disable`: rich does not draw the bar; the caller prints it.
    """
    figures, left = (TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("figures", "left"))
    done = SpinnerColumn(finished_text=Text("✓", "green"))
    return Progress(
        done, MofNCompleteColumn(), BarColumn(bar_width=None), figures, TimeElapsedColumn(), left,
        console=console, expand=True, refresh_per_second=4, disable=disable, get_time=clock,
    )  # fmt: skip


def ongoing(text: str) -> str:
    """Return the text of a stage with the ellipsis of its language at its end."""
    bare = text.removesuffix("...").removesuffix("……").rstrip()
    return _("{stage} ...").format(stage=bare)


class PlainDisplay:
    """Plain lines about every ten seconds, less often in long runs, so that logs stay short."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = 0.0
        self._last: tuple[float, int] | None = None  # time and step of the last line

    def stage(self, text: str) -> None:
        """Print the stage, but not between the first and the last step, where step lines suffice."""
        if self._last is not None:
            return
        self._console.print(Text(ongoing(text)), soft_wrap=True)

    def progress(self, text: str) -> None:
        pass

    def start(self, pace: Throughput, step: int, time: float) -> None:
        self._throughput, self._began, self._last = pace, time, None

    def step(self, event: StepDone) -> None:
        if not self._due(event):
            return
        self._last = (event.time, event.step)
        times = _("{passed} elapsed").format(passed=seconds_text(event.time - self._began))
        if event.step < self._throughput.steps:
            left = seconds_text(self._throughput.seconds_left)
            times = phrases([times, _("{left} left").format(left=left)])
        head = _("step {step}/{steps}").format(step=event.step, steps=self._throughput.steps)
        self._console.print(Text(f"{head}  {figures_text(self._throughput, event)}  {times}"), soft_wrap=True)

    def close(self) -> None:
        self._last = None

    def _due(self, event: StepDone) -> bool:
        if self._last is None or event.step == self._throughput.steps:
            return True
        time, step = self._last
        rhythm = max(LINE_SECONDS, (event.time - self._began) / 60)
        return event.time - time >= rhythm or event.step - step >= LINE_SHARE * self._throughput.steps


def figures_text(pace: Throughput, event: StepDone) -> str:
    """Return loss, tokens/s and peak memory as a short text; unknown values are left out."""
    parts = []
    if pace.loss is not None:
        parts.append(_("loss {loss:.3f}").format(loss=pace.loss))
    if pace.tokens_per_second is not None:
        parts.append(_("{rate:,.0f} tok/s").format(rate=pace.tokens_per_second))
    if event.peak_bytes is not None:
        parts.append(bytes_text(event.peak_bytes))
    return "  ".join(parts)


def left_text(pace: Throughput) -> str:
    """Return the time left, or "" after the last step."""
    return _("{time} left").format(time=_clock(pace.seconds_left)) if pace.step < pace.steps else ""


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
