"""Terminal output of one run, and of the differences between two runs."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lorafit.messages import _, aside, labelled, phrases
from lorafit.reporters.terminal import next_commands
from lorafit.reporters.terminal.columns import show_line, show_rows, show_title, show_unwrapped
from lorafit.reporters.terminal.runs import state_text
from lorafit.reporters.terminal.sparkline import sparkline
from lorafit.reporters.text.marks import LEADING
from lorafit.reporters.text.settings import choice_name, field_name, field_text, value_text
from lorafit.run_folders import history
from lorafit.run_folders.history import Record, SettingDifference
from lorafit.units import bytes_text, date_text, seconds_text


def show_record(record: Record, console: Console) -> None:
    """Print everything about one run."""
    show_rows(_facts(record), console)
    for fault in record.faults:
        show_line(Text(f"⚠  {fault}", "yellow"), console)
    _show_part(_("Non-default settings"), _setting_rows(record), console)
    _show_part(_("Plan"), _plan_rows(record), console)
    _show_part(_("Losses"), _loss_rows(record), console)
    _show_part(_("Curves"), _curve_rows(record), console)
    _show_part(_("Resumed"), _restart_rows(record), console)
    _show_part(_("Adapter"), [[str(record.adapter)]] if record.adapter else [], console)
    show_title(_("Next steps"), console)
    for purpose, command in _next_steps(record).items():
        show_unwrapped(Text.assemble(labelled(purpose, ""), (command, "bold cyan")), console)


def show_difference(one: Record, other: Record, console: Console) -> None:
    """Print the differences between two runs in settings and plan, and the results of both."""
    names = [Text(record.info.name, "bold") for record in (one, other)]
    settings = history.differences(one.settings, other.settings)
    told = {(pair.name, str(pair.one), str(pair.other)) for pair in settings}
    planned = history.differences(history.plan_values(one.plan), history.plan_values(other.plan))
    planned = [pair for pair in planned if (pair.name, str(pair.one), str(pair.other)) not in told]
    rows: list[Sequence[str | Text]] = [["", *names]]
    for title, pairs in ((_("settings"), settings), (_("plan"), planned)):
        rows.append([Text(title if pairs else _("{part}: identical").format(part=title), "dim"), "", ""])
        rows += [[f"  {field_name(p.name)}", field_text(p.name, p.one), field_text(p.name, p.other)] for p in pairs]
    rows.append([Text(_("results"), "dim"), "", ""])
    rows += [[f"  {pair.name}", value_text(pair.one), value_text(pair.other)] for pair in _result_pairs(one, other)]
    show_rows(rows, console)
    for record in (one, other):
        for fault in record.faults:
            text = labelled(record.info.name, fault)
            show_line(Text(f"⚠  {text}", "yellow"), console)


def _show_part(title: str, rows: list[list[str | Text]], console: Console) -> None:
    if rows:
        show_title(title, console)
        show_rows(rows, console)


def _facts(record: Record) -> list[list[str | Text]]:
    info, results = record.info, history.results(record)
    begun = history.start_time(record)
    steps = _("step {step} of {steps}").format(step=info.step, steps="?" if info.steps is None else info.steps)
    where = "/".join(str(record.plan[key]) for key in ("engine", "device", "precision") if key in record.plan)
    model = str(info.model or record.settings.get("model_name", "?"))
    rows: list[list[str | Text]] = [
        [_("run"), Text(info.name, "bold")],
        [_("state"), phrases([state_text(info.state), steps])],
        [_("model"), aside(model, where) if where else model],
        [_("data"), str(record.settings.get("dataset_name", "?"))],
        [_("started"), "?" if begun is None else date_text(begun, "%Y-%m-%d %H:%M:%S")],
        [_("training"), _pace_text(results)],
        [_("folder"), aside(str(record.run.path), bytes_text(record.bytes))],
    ]
    if failure := history.failure_text(record):
        rows.append([_("failed"), Text(failure, "red")])
    return rows


def _pace_text(results: history.Results) -> str:
    parts = [seconds_text(results.seconds)]
    if results.tokens_per_second is not None:
        parts.append(_("{rate:,.0f} tok/s").format(rate=results.tokens_per_second))
    if results.peak_bytes is not None:
        parts.append(_("peak memory {size}").format(size=bytes_text(results.peak_bytes)))
    return phrases(parts)


def _setting_rows(record: Record) -> list[list[str | Text]]:
    pairs = history.changed_settings(record.settings)
    return [
        [p.name, Text(value_text(p.one), "bold"), Text(_("default: {value}").format(value=value_text(p.other)), "dim")]
        for p in pairs
    ]


def _plan_rows(record: Record) -> list[list[str | Text]]:
    rows = history.plan_choices(record.plan)
    return [
        [choice_name(row["setting"]), Text(row["value"], "bold"), Text(row["reason"].lstrip(LEADING), "dim")]
        for row in rows
    ]


def _loss_rows(record: Record) -> list[list[str | Text]]:
    results = history.results(record)
    best = _loss(results.best_loss)
    if results.best_loss is not None and results.best_step is not None and record.run.best_model.is_dir():
        best = _("{loss} at step {step}").format(loss=best, step=results.best_step)
    found = [
        (_("validation loss, before"), results.valid_loss_before, _loss(results.valid_loss_before)),
        (_("validation loss, after"), results.valid_loss_after, _loss(results.valid_loss_after)),
        (_("validation loss, best"), results.best_loss, best),
        (_("training loss, last steps"), results.train_loss, _loss(results.train_loss)),
    ]
    return [[name, Text(text, "bold")] for name, loss, text in found if loss is not None]


def _curve_rows(record: Record) -> list[list[str | Text]]:
    rows: list[list[str | Text]] = []
    for name, points in history.curves(record).items():
        values = [value for _step, value in points]
        ends = f"{_figure(name, values[0])} → {_figure(name, values[-1])}"
        rows.append([name, Text(sparkline(values), "cyan"), ends])
    return rows


def _restart_rows(record: Record) -> list[list[str | Text]]:
    return [
        [_("after step {step}").format(step=event.step), event.checkpoint or _("from the start")]
        for event in history.restarts(record)
    ]


def _next_steps(record: Record) -> dict[str, str]:
    run = str(record.run.path)
    follow = {}
    if record.info.state in ("stopped", "interrupted"):
        follow[_("resume")] = next_commands.resume(run)
    if record.adapter is not None:
        follow[_("chat with the model")] = next_commands.chat(run)
    follow[_("view the curves")] = next_commands.curves(str(Path(run).parent))
    return follow


def _result_pairs(one: Record, other: Record) -> list[SettingDifference]:
    return [SettingDifference(name, a, b) for (name, a), (_name, b) in zip(_results(one), _results(other), strict=True)]


def _results(record: Record) -> list[tuple[str, str]]:
    info, results = record.info, history.results(record)
    return [
        (_("state"), phrases([state_text(info.state), f"{info.step}/{'?' if info.steps is None else info.steps}"])),
        (_("validation loss, before"), _loss(results.valid_loss_before)),
        (_("validation loss, after"), _loss(results.valid_loss_after)),
        (_("validation loss, best"), _loss(results.best_loss)),
        (_("training loss, last steps"), _loss(results.train_loss)),
        (_("training time"), seconds_text(results.seconds)),
        (_("tokens/s"), _figure("tokens/s", results.tokens_per_second)),
        (_("peak memory"), bytes_text(results.peak_bytes)),
    ]


def _loss(loss: float | None) -> str:
    return "?" if loss is None else f"{loss:.4f}"


def _figure(name: str, value: float | None) -> str:
    """Return a value of the curve `name`: losses with four decimals, tokens/s as integers, others with three digits."""
    if value is None:
        return "?"
    if name.endswith("loss"):
        return f"{value:.4f}"
    return f"{value:,.0f}" if name == "tokens/s" else f"{value:.3g}"
