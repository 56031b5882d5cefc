"""The HTML page of a run: settings, plan, measurements, events, and commands that use the result."""

import contextlib
from pathlib import Path

from lorafit.errors import LorafitError
from lorafit.events import (
    AdapterChecked,
    Answered,
    Continued,
    Event,
    Failed,
    Finished,
    Moved,
    Paused,
    Restarted,
    Resumed,
    Shrunk,
    Started,
    Stopped,
    Warned,
)
from lorafit.messages import _
from lorafit.paths import write_for_user
from lorafit.reporters.html.curve import make_chart
from lorafit.reporters.html.page import render
from lorafit.reporters.terminal import next_commands
from lorafit.reporters.terminal.runs import state_text
from lorafit.reporters.text.data import Figure, Listing
from lorafit.reporters.text.marks import LEADING
from lorafit.reporters.text.settings import choice_name, value_text
from lorafit.run_folders import history
from lorafit.run_folders.directory import RunDir
from lorafit.run_folders.history import Record, Results
from lorafit.units import bytes_text, count_text, date_text, seconds_text

TIMELINE_EVENTS = (
    Started, Restarted, Resumed, Shrunk, Warned, Paused, Continued, Moved, AdapterChecked, Stopped, Failed, Finished,
)  # fmt: skip


class RunPageReporter:
    """Reporter that writes report.html into the run's folder, named by `Started`, when the run ends."""

    def __init__(self) -> None:
        self._run: RunDir | None = None

    def on_event(self, event: Event) -> None:
        """Record the run's folder."""
        if isinstance(event, Started | Moved):
            self._run = RunDir(Path(event.run))

    def close(self) -> None:
        """Write the page. Errors, e.g. a full disk, are ignored: only the page is lost."""
        if self._run is not None and self._run.path.is_dir():
            with contextlib.suppress(LorafitError, OSError):
                write_for_user(self._run.report, run_page(history.read_record(self._run)), "--output_dir")


def run_page(record: Record) -> str:
    """Return the run as HTML."""
    curves, results = history.curves(record), history.results(record)
    losses = {_("training"): curves.get("loss", []), _("validation set"): curves.get("valid_loss", [])}
    pictures = [make_chart(_("Loss (nats per token in the loss)"), losses)]
    pictures += [
        make_chart(title, {name: curves.get(name, [])})
        for name, title in (("lr", _("Learning rate")), ("tokens/s", _("Tokens per second")))
    ]
    facts: dict[str, object] = {
        "title": record.info.name,
        "subtitle": _subtitle(record),
        "failure": history.failure_text(record) or "",
        "figures": _figures(record, results),
        "pictures": [drawn for drawn in pictures if drawn is not None],
        "listings": [listing for listing in _listings(record, results) if listing.rows],
        "answers_title": _("A validation question (not trained on)"),
        "answers": [
            (e.question, ((_("Base model"), e.base), (_("Fine-tuned model"), e.tuned)))
            for e in record.of_kind(Answered)
        ],
        "use_title": _("Next steps"),
        "use": _next_steps(record),
    }
    return render("run.html", facts)


def _subtitle(record: Record) -> str:
    where = "/".join(str(record.plan[key]) for key in ("engine", "device", "precision") if key in record.plan)
    model = record.info.model or str(record.settings.get("model_name", "?"))
    data = str(record.settings.get("dataset_name", "?"))
    begun = history.start_time(record)
    when = "" if begun is None else date_text(begun, "%Y-%m-%d %H:%M")
    return " · ".join(part for part in (model, data, where, when) if part)


def _figures(record: Record, results: Results) -> list[Figure]:
    info = record.info
    steps = _("step {step} of {steps}").format(step=info.step, steps="?" if info.steps is None else info.steps)
    before, after = results.valid_loss_before, results.valid_loss_after
    figures = [Figure(_("state"), state_text(info.state), steps, True if info.state == "finished" else None)]
    if before is not None and after is not None:
        figures.append(
            Figure(
                _("validation loss"),
                f"{after:.4f}",
                _("{loss} before training").format(loss=f"{before:.4f}"),
                after < before,
            )
        )
    if results.best_loss is not None and results.best_step is not None:
        figures.append(
            Figure(
                _("best validation loss"),
                f"{results.best_loss:.4f}",
                _("at step {step}").format(step=results.best_step) if record.run.best_model.is_dir() else "",
            )
        )
    figures.append(Figure(_("total step time"), seconds_text(results.seconds), _rate(results.tokens_per_second)))
    if results.peak_bytes is not None:
        figures.append(Figure(_("peak memory"), bytes_text(results.peak_bytes)))
    count = len(record.of_kind(Restarted))
    figures.append(
        Figure(
            _("restarts"),
            count_text(count),
            _("automatic, after the training process exited") if count else "",
            not count or None,
        )
    )
    return figures


def _rate(rate: float | None) -> str:
    return "" if rate is None else _("{rate:,.0f} tok/s").format(rate=rate)


def _listings(record: Record, results: Results) -> list[Listing]:
    asked = [(p.name, value_text(p.one), value_text(p.other)) for p in history.changed_settings(record.settings)]
    planned = [
        (choice_name(row["setting"]), row["value"], row["reason"].lstrip(LEADING))
        for row in history.plan_choices(record.plan)
    ]
    return [
        Listing(_("Predicted and measured"), ("", _("predicted"), _("measured")), _compared(record, results), (1, 2)),
        Listing(_("Events"), (_("time"), _("step"), ""), _timeline(record), (1,)),
        Listing(_("Non-default settings"), (_("setting"), _("value"), _("default")), asked),
        Listing(_("Plan and reasons"), (_("setting"), _("value"), _("reason")), planned),
    ]


def _compared(record: Record, results: Results) -> list[tuple[str, ...]]:
    """Return rows of name, prediction and measurement. Quantities without a prediction are left out."""
    plan = record.plan
    whole = results.seconds if record.info.state == "finished" else None
    rows = [
        (_("peak memory"), bytes_text, plan.get("predicted_peak_bytes"), results.peak_bytes),
        (_("total step time"), seconds_text, plan.get("predicted_seconds"), whole),
        (_("tokens per second"), lambda rate: f"{rate:,.0f}", plan.get("predicted_tokens_per_second"), results.tokens_per_second),
    ]  # fmt: skip
    good = [(name, text, p, m) for name, text, p, m in rows if isinstance(p, int | float) and p > 0 and m is not None]
    return [(name, text(predicted), text(measured)) for name, text, predicted, measured in good]


def _timeline(record: Record) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for event in record.events:
        text = _event_text(event)
        if isinstance(event, TIMELINE_EVENTS) and text and isinstance(event.time, int | float):
            rows.append((date_text(event.time, "%m-%d %H:%M:%S"), str(event.step), text))
    return rows


def _event_text(event: Event) -> str:
    match event:
        case Started():
            return _("Training started.")
        case Resumed():
            return _("Resuming from {path} (step {step}).").format(step=event.step, path=event.checkpoint or "-")
        case Stopped():
            return _("Stopped by signal {signal}; all progress is saved.").format(signal=event.signal)
        case Moved():
            return _("The run's folder was moved to {path}.").format(path=event.run)
        case Finished():
            return _("Finished.")
        case Restarted() | Shrunk() | Warned() | Paused() | Continued() | AdapterChecked() | Failed():
            return str(event.text).lstrip(LEADING)
    return ""


def _next_steps(record: Record) -> list[tuple[str, str]]:
    """Return the next steps: purpose, and the command or path for it."""
    run = str(record.run.path)
    use = []
    if record.info.state in ("stopped", "interrupted"):
        use.append((_("resume"), next_commands.resume(run)))
    if record.adapter is not None:
        use.append((_("chat with the model"), next_commands.chat(run)))
        use.append((_("compare with the base model"), next_commands.compare(run)))
        use.append((_("adapter, ready to load with peft"), str(record.adapter)))
    use.append((_("view the curves"), next_commands.curves(str(Path(run).parent))))
    return use
