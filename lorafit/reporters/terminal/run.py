"""Terminal output of a run: the plan, progress, saved files, results and the next commands."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorafit.errors import LorafitError
from lorafit.events import (
    AdapterChecked,
    Answered,
    Continued,
    EvalDone,
    Evaluating,
    Event,
    Failed,
    Finished,
    Moved,
    Paused,
    Planned,
    Rehearsed,
    Restarted,
    Resumed,
    Saved,
    Shrunk,
    Stage,
    Started,
    StepDone,
    Stopped,
    Warned,
)
from lorafit.messages import _, labelled
from lorafit.reporters.terminal import next_commands
from lorafit.reporters.terminal.columns import show_rows
from lorafit.reporters.terminal.console import open_console
from lorafit.reporters.terminal.errors import show_error
from lorafit.reporters.terminal.plan import clock_text
from lorafit.reporters.terminal.progress import Display, open_display
from lorafit.reporters.terminal.throughput import Throughput
from lorafit.reporters.text.marks import SENTENCE_MARKS
from lorafit.reporters.text.settings import choice_name
from lorafit.units import bytes_text, count_text, seconds_text


class TerminalReporter:
    """Reporter that shows events on `console`: live on a terminal, else as plain lines."""

    def __init__(self, console: Console | None = None, display: Display | None = None) -> None:
        self._console = console or open_console()
        self._display = display or open_display(self._console)
        self._throughput = Throughput(steps=0)
        self._run = ""
        self._next_commands: dict[str, str] = {}  # purpose -> command, printed by close()

    def on_event(self, event: Event) -> None:
        """Show `event`."""
        self._run = getattr(event, "run", self._run)  # of Started and Moved
        match event:
            case Stage():
                self._stage(event)
            case Evaluating() | EvalDone():
                self._evaluation(event)
            case Planned():
                self._planned(event)
            case Started():
                self._started(event)
            case StepDone():
                self._throughput.on_event(event)
                self._display.step(event)
            case Stopped():
                self._stopped(event)
            case Failed():
                self._failed(event)
            case Finished():
                self._finished(event)
            case Answered():
                self._answered(event)
            case _:
                self._say(*line_of(event))

    def show_error(self, error: LorafitError) -> None:
        """Show the error that ended the run, on stderr."""
        self._display.close()
        show_error(error, open_console(stderr=True))

    def close(self) -> None:
        """Restore the terminal and, if the run is over, print the next commands."""
        self._display.close()
        for purpose, command in self._next_commands.items():  # never wrapped, because users paste it
            self._console.print(Text.assemble("  ", labelled(purpose, ""), (command, "bold cyan")), soft_wrap=True)

    def _say(self, text: str, style: str = "") -> None:
        if text:
            self._console.print(Text(text, style), soft_wrap=not self._console.is_interactive)

    def _stage(self, event: Stage) -> None:
        if event.text.startswith(SENTENCE_MARKS):
            self._say(event.text)
        else:
            self._display.stage(event.text)

    def _evaluation(self, event: Evaluating | EvalDone) -> None:
        """Show the progress of an evaluation, then its result."""
        if isinstance(event, Evaluating):
            text = _("Evaluating on the validation set ({rows} rows): {share:.0%}")
            self._display.progress(text.format(rows=event.rows, share=event.share))
        else:
            self._display.progress("")
            self._say(*line_of(event))

    def _planned(self, event: Planned) -> None:
        """Print complete sentences as they are; other choices, and memory if no choice covers it, as a table."""
        self._display.close()
        for choice in event.choices:
            if choice["reason"].startswith(SENTENCE_MARKS):
                self._say(choice["reason"], "yellow" if choice["reason"].startswith("⚠") else "")
        rows = [
            (choice_name(choice["setting"]), choice["value"], choice["reason"])
            for choice in event.choices
            if not choice["reason"].startswith(SENTENCE_MARKS)
        ]
        if not any(choice["setting"] == "memory" for choice in event.choices):
            peak, available = bytes_text(event.predicted_peak_bytes), bytes_text(event.available_bytes)
            rows.append((_("memory"), peak, _("predicted peak; {available} available").format(available=available)))
        if self._console.is_interactive:
            show_rows(
                [[setting, Text(value, "bold"), Text(reason, "dim")] for setting, value, reason in rows], self._console
            )
            return
        for setting, value, reason in rows:
            self._say(labelled(f"{setting} = {value}", reason))

    def _started(self, event: Started) -> None:
        self._display.close()
        self._throughput = Throughput(steps=event.steps, step=event.step)
        text = _(
            "Training {model} on {device}; steps: {steps}, training rows: {train}, validation "
            "rows: {held}, trainable parameters: {parameters}."
        )
        self._say(
            text.format(
                model=event.model,
                device=event.device,
                steps=count_text(event.steps),
                train=count_text(event.train_samples),
                held=count_text(event.valid_samples),
                parameters=count_text(event.trainable_parameters),
            ),
            "bold",
        )
        self._say(_("Run folder: {run}").format(run=event.run))
        self._display.start(self._throughput, event.step, event.time)

    def _stopped(self, event: Stopped) -> None:
        self._display.close()
        self._say(_("Stopped after step {step}; all progress is saved.").format(step=event.step), "yellow")
        self._next_commands = {_("resume"): next_commands.resume(self._run)}

    def _failed(self, event: Failed) -> None:
        """Show the last step and the command to resume; show_error() shows the error itself."""
        self._display.close()
        self._say(_("Training failed after step {step}.").format(step=event.step), "yellow")
        if not Path(self._run).is_dir():  # the user deleted it
            return
        self._next_commands = {_("resume from the last checkpoint"): next_commands.resume(self._run)}

    def _finished(self, event: Finished) -> None:
        self._display.close()
        took = seconds_text(event.seconds)
        self._say(_("✓ Training finished; the steps took {time}.").format(time=took), "bold green")
        if event.seconds > 0:
            waited = _("The device waited for data {share:.2%} of the time.")
            self._say(waited.format(share=event.data_seconds / event.seconds))
        if event.predicted_seconds is not None and event.peak_bytes is not None:
            text = _("Predicted: {time}, peak memory {peak}. Actual: {took}, {found}.")
            peak, found = bytes_text(event.predicted_peak_bytes), bytes_text(event.peak_bytes)
            self._say(text.format(time=seconds_text(event.predicted_seconds), peak=peak, took=took, found=found))
        if event.valid_loss_before is not None and event.valid_loss_after is not None:
            losses = _("Validation loss: {before:.4f} before training, {after:.4f} after.")
            self._say(losses.format(before=event.valid_loss_before, after=event.valid_loss_after))
        if event.best_loss is not None and event.best_step is not None and (Path(self._run) / "best_model").is_dir():
            self._say(
                _("Best validation loss: {loss:.4f} at step {step}.").format(loss=event.best_loss, step=event.best_step)
            )
        self._say(_("Adapter: {path}").format(path=Path(self._run) / event.path))
        self._next_commands = {
            _("chat with the model"): next_commands.chat(self._run),
            _("export for Ollama"): next_commands.export(self._run, "ollama"),
            _("export for LM Studio"): next_commands.export(self._run, "lmstudio"),
            _("export for MLX"): next_commands.export(self._run, "mlx"),
            _("view the curves"): next_commands.curves(str(Path(self._run).parent)),
        }

    def _answered(self, event: Answered) -> None:
        """Print both answers: side by side on a terminal, one below the other elsewhere."""
        self._display.close()
        self._say(_("A validation question (not trained on): {question}").format(question=event.question), "bold")
        before, after = _("Base model"), _("Fine-tuned model")
        if not self._console.is_interactive:
            self._say(labelled(before, event.base))
            self._say(labelled(after, event.tuned))
            return
        table = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="dim")
        table.add_column(before, ratio=1)
        table.add_column(after, ratio=1)
        table.add_row(Text(event.base), Text(event.tuned))
        self._console.print(table)


def line_of(event: Event) -> tuple[str, str]:
    """Return text and style of an event that is shown as one line; the text is "" for an event that is not shown."""
    match event:
        case EvalDone():
            best = _(" (best so far)") if event.best else ""
            loss = "?" if event.loss is None else f"{event.loss:.4f}"
            return _("step {step}: validation loss {loss}").format(step=event.step, loss=loss) + best, "cyan"
        case Saved():
            size = bytes_text(event.bytes)
            return _("step {step}: saved {path} ({size})").format(step=event.step, path=event.path, size=size), "dim"
        case Continued():
            return f"✓ {event.text}", ""
        case AdapterChecked() if event.peft is None:
            return event.text, "dim"
        case AdapterChecked():
            whole = event.loaded == event.tensors
            return f"{'✓ ' if whole else '⚠  '}{event.text}", "" if whole else "yellow"
        case Moved():
            return _("⚠  The run's folder was moved; training continues in {path}").format(path=event.run), "yellow"
        case Warned() | Shrunk() | Restarted() | Paused():
            text = event.text if event.text.startswith(SENTENCE_MARKS) else f"⚠  {event.text}"
            return text, "" if text.startswith("✓") else "yellow"
        case Rehearsed():
            return _rehearsed_text(event), ""
        case Resumed() if event.checkpoint:
            return _("Resuming from {path} (step {step}).").format(step=event.step, path=event.checkpoint), ""
        case _:
            return "", ""


def _rehearsed_text(event: Rehearsed) -> str:
    text = _("✓ Measured: {rate:,.0f} tokens/s. About {total} in total, finishing around {when}; peak memory {peak}")
    return text.format(
        rate=event.tokens_per_second,
        total=seconds_text(event.expected_seconds),
        when=clock_text(event.time, event.expected_seconds),
        peak=bytes_text(event.peak_bytes),
    )
