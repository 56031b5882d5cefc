"""How does a plan look before a run? Machine, model, data, choices with reasons, memory by term, time, and the runners-up."""

import time
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorafit.catalogue.clouds import INSTANCES
from lorafit.catalogue.find import CHIPS
from lorafit.messages import _, listed
from lorafit.outlook import Outlook, described_facts
from lorafit.plan import room
from lorafit.plan.plan import Choice
from lorafit.plan.reasons import source_text, term_names
from lorafit.plan.table import GUIDE_MODELS, MODELS, Cell, Timed, difference, hours_text, settings_text
from lorafit.reporters.columns import show_rows
from lorafit.units import bytes_text, seconds_text

MARKS = ("✓", "⚠", "✗")


def show_plan(look: Outlook, console: Console) -> None:
    """Print all of it."""
    for note in look.notes:
        console.print(Text(f"⚠  {note}", "yellow"), soft_wrap=True)
    _show(described_facts(look), console)
    console.print()
    _show((c for c in look.plan.choices if c.setting not in ("memory", "time")), console)
    console.print()
    _show_memory(look, console)
    console.print()
    _show_time(look, console)
    if look.others:
        console.print(Text("\n" + _("Considered and not taken"), "bold"))
        for other in look.others:
            console.print(Text.assemble((f"  {other.value}", ""), (f"  {other.reason}", "dim")), soft_wrap=True)


def _show(choices: Iterable[Choice], console: Console) -> None:
    rows: list[list[str | Text]] = [
        [choice.setting, Text(choice.value, "bold"), Text(choice.reason, "dim")] for choice in choices
    ]
    show_rows(rows, console, fold=True)


def _show_memory(look: Outlook, console: Console) -> None:
    plan, names = look.plan, term_names()
    text = _("Memory at its peak: {peak} of {available}")
    if plan.processes > 1:
        text = _("Memory of each of {count} processes at its peak: {peak} of {available}")
    peak, available = bytes_text(plan.predicted_peak_bytes), bytes_text(plan.available_bytes)
    title = Text(text.format(count=plan.processes, peak=peak, available=available), "bold")
    if source := room.source_text(look.planned.question.machine, plan.device):
        title.append(_(" ({source})").format(source=source), "not bold dim")
    console.print(title, soft_wrap=True)
    terms = sorted(plan.memory_terms.items(), key=lambda item: -item[1])
    show_rows([[f"  {names[name]}", bytes_text(size)] for name, size in terms if size], console, (1,), fold=True)


def _show_time(look: Outlook, console: Console) -> None:
    expected = look.planned.estimate
    text = _("Time: {total} ({low} to {high}), {rate:,.0f} tokens/s, {source}")
    line = text.format(
        total=seconds_text(expected.total),
        low=seconds_text(expected.low),
        high=seconds_text(expected.high),
        rate=expected.tokens_per_second,
        source=source_text(expected.source),
    )
    console.print(Text(line, "bold"), soft_wrap=True)
    console.print(_("Begun now it would be done {when}.").format(when=clock_text(expected.total)), soft_wrap=True)


def clock_text(seconds: float) -> str:
    """The time of day, and the date where that is not today's, after so many seconds."""
    now, then = time.localtime(), time.localtime(time.time() + seconds)
    same_day = time.strftime("%Y-%m-%d", now) == time.strftime("%Y-%m-%d", then)
    return time.strftime("%H:%M" if same_day else "%Y-%m-%d %H:%M", then)


def show_machines(console: Console) -> None:
    """Print the catalogue."""
    titles = (_("machine"), _("memory in GB"), "GB/s", "fp32", "bf16", "fp16", _("source"))
    rows: list[list[str | Text]] = [[Text(title, "dim") for title in titles]]
    for chip in CHIPS:
        sizes = listed(map(str, chip.memory_gb))
        rates = [f"{chip.teraflops[p]:g}" if p in chip.teraflops else "-" for p in ("fp32", "bf16", "fp16")]
        rows.append(
            [Text(chip.name, "bold"), sizes, f"{chip.gigabytes_per_second:g}", *rates, Text(chip.source, "dim")]
        )
    show_rows(rows, console, (2, 3, 4, 5))
    console.print(Text(_("fp32, bf16, fp16: TFLOP/s as the maker states them.") + "\n", "dim"))
    heads = (_("rented machine"), "GPU", _("memory in GB"), _("cores"), _("source"))
    rented: list[list[str | Text]] = [[Text(title, "dim") for title in heads]]
    for one in INSTANCES:
        gpu = f"{one.gpus} x {one.chip} {one.gpu_gb} GB"
        rented.append([Text(one.name, "bold"), gpu, str(one.memory_gb), str(one.cores), Text(one.source, "dim")])
    show_rows(rented, console, (2, 3))
    console.print(_("Plan for one of them: {command}").format(command='lorafit plan --machine "M1 Pro 16GB"'))


def show_tables(cells: list[Cell], times: list[Timed], console: Console) -> None:
    """Print which machine trains which model, and how long the guide's run takes."""
    table = Table(padding=(0, 1), header_style="bold", title=_("lawyer_llama_data, 3 epochs: time, or why not"))
    table.add_column(_("machine"))
    for model in MODELS:
        table.add_column(model)
    table.add_column(_("guide"))
    by_machine = {name: [cell for cell in cells if cell.machine == name] for name in GUIDE_MODELS}
    for name, row in by_machine.items():
        table.add_row(Text(name, "bold"), *(_cell(cell) for cell in row), GUIDE_MODELS[name])
    console.print(table)
    second = Table(padding=(0, 1), header_style="bold", title=_("Llama-3.2-3B beside the guide's times"))
    for title in (_("machine"), _("length"), _("ours"), _("settings"), _("guide"), _("why")):
        second.add_column(title, overflow="fold")
    for timed in times:
        low, high = timed.guide_hours
        ours = hours_text(timed.planned) if timed.planned else "-"
        how = settings_text(timed.planned) if timed.planned else ""
        second.add_row(timed.machine, str(timed.max_length), ours, how, f"{low}-{high} h", difference(timed))
    console.print(second)
    console.print(Text(_("Times are from the chips' stated speeds, not measured: they may be off by half."), "dim"))


def _cell(cell: Cell) -> Text:
    if cell.planned is None:
        return Text("-", "dim")
    numbers = settings_text(cell.planned).split(" ")[0]
    return Text.assemble(hours_text(cell.planned), "\n", (numbers, "dim"))
