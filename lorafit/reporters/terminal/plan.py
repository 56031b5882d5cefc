"""Terminal output of a plan: machine, model, data, choices with reasons, memory by term, time, and alternatives."""

import time
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from lorafit.messages import _
from lorafit.planner import memory_budget
from lorafit.planner.plan import Choice
from lorafit.planner.reasons import source_text, term_names
from lorafit.reporters.terminal.columns import show_line, show_rows, show_unwrapped
from lorafit.reporters.text.settings import choice_name
from lorafit.training.preview import Preview, preview_facts
from lorafit.units import bytes_text, date_text, seconds_text


def show_plan(look: Preview, console: Console) -> None:
    """Print everything in the preview `look`."""
    for note in look.notes:
        console.print(Text(f"⚠  {note}", "yellow"), soft_wrap=True)
    _show(preview_facts(look), console)
    console.print()
    _show((c for c in look.plan.choices if c.setting not in ("memory", "time")), console)
    console.print()
    _show_memory(look, console)
    console.print()
    _show_time(look, console)
    if look.others:
        console.print(Text("\n" + _("Considered but not chosen"), "bold"))
        for other in look.others:
            show_unwrapped(Text(f"  {other.value}"), console)
            show_rows([["  ", Text(other.reason, "dim")]], console, fold=True)


def _show(choices: Iterable[Choice], console: Console) -> None:
    rows: list[list[str | Text]] = [
        [choice_name(choice.setting), Text(choice.value, "bold"), Text(choice.reason, "dim")] for choice in choices
    ]
    show_rows(rows, console, fold=True)


def _show_memory(look: Preview, console: Console) -> None:
    plan, names = look.plan, term_names()
    text = _("Peak memory: {peak} of {available} available")
    if plan.device == "cuda":
        text = _("Peak GPU memory: {peak} of {available} available")
    if plan.processes > 1:
        text = _("Peak memory of each of {count} processes: {peak} of {available} available")
    peak, available = bytes_text(plan.predicted_peak_bytes), bytes_text(plan.available_bytes)
    title = Text(text.format(count=plan.processes, peak=peak, available=available), "bold")
    if source := memory_budget.source_text(look.planned.plan_request.machine, plan.device):
        title.append(_(" ({source})").format(source=source), "not bold dim")
    console.print(title, soft_wrap=True)
    terms = sorted(plan.memory_terms.items(), key=lambda item: -item[1])
    show_rows([[f"  {names[name]}", bytes_text(size)] for name, size in terms if size], console, (1,), fold=True)


def _show_time(look: Preview, console: Console) -> None:
    expected = look.planned.estimate
    text = _("Time: {total} ({low} to {high}), {rate:,.0f} tokens/s, {source}")
    line = text.format(
        total=seconds_text(expected.total),
        low=seconds_text(expected.low),
        high=seconds_text(expected.high),
        rate=expected.tokens_per_second,
        source=source_text(expected.source),
    )
    show_line(Text(line, "bold"), console)
    show_line(
        _("If started now, it would finish around {when}.").format(when=clock_text(time.time(), expected.total)),
        console,
    )


def clock_text(begun: float, seconds: float) -> str:
    """Return the time of day `seconds` after `begun` (Unix time), with the date if it is another day."""
    then = begun + seconds
    same_day = date_text(begun, "%Y-%m-%d") == date_text(then, "%Y-%m-%d")
    return date_text(then, "%H:%M" if same_day else "%Y-%m-%d %H:%M")
