"""Tables of the machine catalog and of the models that each machine trains: one line for each machine, 80 columns."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from lorafit.hardware.catalogue import cpus
from lorafit.hardware.catalogue.catalogue import Catalogue
from lorafit.hardware.catalogue.chip import Chip
from lorafit.messages import _, listed, translate
from lorafit.planner.table import GUIDE_MODELS, MODELS, GuideTime, ModelOnMachine, settings_text
from lorafit.reporters.terminal.columns import show_line, show_rows, show_title

QUANTIZED_MARK = "*"  # marks a time with a quantized base model


def show_machines(catalogue: Catalogue, console: Console) -> None:
    """Print the catalog, followed by the sources of its figures."""
    processors = [*catalogue.cpus.items(), (_("any other"), (cpus.UNKNOWN, cpus.UNKNOWN_SOURCE))]
    given = [*(chip.source for chip in catalogue.chips), *(source for _name, (_rate, source) in processors)]
    sources = list(dict.fromkeys([*given, *(one.source for one in catalogue.instances)]))
    for title, chips in catalogue.groups:
        _show_chips(translate(title), chips, sources, console)
    console.print()
    show_line(
        Text(_("fp32, 16 bits: TFLOP/s as published by the manufacturer, dense, with float32 accumulation."), "dim"),
        console,
    )
    show_line(
        Text(_("-: no faster unit for 16 bits. bf16 needs Ampere (A or RTX 30) or newer, or an Apple chip."), "dim"),
        console,
    )
    console.print()
    cores = [_head([_("CPU"), _("GFLOP/s per core (fp32)"), _("source")])]
    cores += [[Text(name, "bold"), f"{rate:g}", _mark(sources, source)] for name, (rate, source) in processors]
    show_rows(cores, console, (1,))
    console.print()
    rented = [_head([_("rented machine"), "GPU", _("memory (GB)"), _("cores"), _("source")])]
    for one in catalogue.instances:
        gpu, source = f"{one.gpus} x {one.chip} {one.gpu_gb} GB", _mark(sources, one.source)
        rented.append([Text(one.name, "bold"), gpu, str(one.memory_gb), str(one.cores), source])
    show_rows(rented, console, (2, 3))
    show_title(_("Sources"), console)
    show_rows([[_mark(sources, source), translate(source)] for source in sources], console, fold=True)
    console.print()
    console.print(_("Plan for one of these machines: {command}").format(command='lorafit plan --machine "M1 Pro 16GB"'))
    console.print(_("For any other GPU: {command}").format(command='lorafit plan --machine "24GB 165TFLOPS 1008GB/s"'))


def _show_chips(title: str, chips: Sequence[Chip], sources: list[str], console: Console) -> None:
    """Print a table of `chips`: one line for each, versions with other memory on lines of their own."""
    rows = [_head([title, _("memory (GB)"), "GB/s", "fp32", _("16 bits"), _("source")])]
    for chip in chips:
        sizes = listed(map(str, chip.memory_gb))
        half = chip.teraflops.get("fp16")
        rates = [f"{chip.teraflops['fp32']:g}", "-" if half is None else f"{half:g}"]
        bandwidth, source = f"{chip.gigabytes_per_second:g}", _mark(sources, chip.source)
        rows.append([Text(chip.name, "bold"), sizes, bandwidth, *rates, source])
    console.print()
    show_rows(rows, console, (2, 3, 4))


def _head(titles: list[str]) -> list[str | Text]:
    return [Text(title, "dim") for title in titles]


def _mark(sources: list[str], source: str) -> Text:
    return Text(f"[{sources.index(source) + 1}]", "dim")


def show_tables(cells: list[ModelOnMachine], times: list[GuideTime], console: Console) -> None:
    """Print the training time of each model on each machine, and lorafit's times beside those of the macOS guide."""
    show_title(_("Training time on lawyer_llama_data (21,476 rows, 3 epochs), by model size"), console)
    rows = [_head([_("machine"), *MODELS, _("guide")])]
    for name, guide in GUIDE_MODELS.items():
        own = [cell for cell in cells if cell.machine == name]
        rows.append([Text(name, "bold"), *(_cell(cell) for cell in own), guide])
    show_rows(rows, console, range(1, len(MODELS) + 1))
    notes = [
        _("*: 4-bit base weights. -: does not fit even with 4-bit. guide: largest model the macOS guide trains there."),
        _("Larger models than the guide's fit thanks to fewer bits, gradient checkpointing and no padding."),
    ]
    _show_notes(notes, console)
    show_title(_("Llama-3.2-3B: times of lorafit and of the guide"), console)
    titles = [_("machine"), _("length"), _("settings"), _("lorafit"), _("guide"), _("guide / lorafit"), _("padding")]
    show_rows([_head(titles), *(_guide_row(timed) for timed in times)], console, (1, 3, 4, 5, 6))
    notes = [
        _("settings: precision, tokens per micro-batch, r and the number of recomputed layers."),
        _("padding: padded tokens per real token in the guide's script; lorafit does not pad."),
        _("Times are computed from published chip speeds, not measured: expect 0.65 to 1.6 times the figure."),
    ]
    _show_notes(notes, console)


def _show_notes(notes: list[str], console: Console) -> None:
    for note in notes:
        show_line(Text(note, "dim"), console)


def _guide_row(timed: GuideTime) -> list[str | Text]:
    low, high = timed.guide_hours
    guide, padding = f"{low}-{high} h", f"{timed.padding:.1f}"
    if timed.planned is None:
        return [Text(timed.machine, "bold"), str(timed.max_length), "-", "-", guide, "-", padding]
    ratio = (low + high) / 2 / (timed.planned.estimate.total / 3600)
    ours, settings = short_time(timed.planned.estimate.total), settings_text(timed.planned)
    return [Text(timed.machine, "bold"), str(timed.max_length), settings, ours, guide, f"{ratio:.1f}", padding]


def short_time(seconds: float) -> str:
    """Return a time as a short text, so that a line holds seven: "0.4 h", "25 h", "3.4 d"."""
    hours = seconds / 3600
    number = hours if hours < 48 else hours / 24
    text = _("{number} h") if hours < 48 else _("{number} d")
    return text.format(number=f"{number:.1f}" if number < 9.95 else f"{number:.0f}")


def _cell(cell: ModelOnMachine) -> str | Text:
    if cell.planned is None:
        return Text("- ", "dim")
    packed = cell.planned.chosen.layout.quantization != "none"
    return short_time(cell.planned.estimate.total) + (QUANTIZED_MARK if packed else " ")
