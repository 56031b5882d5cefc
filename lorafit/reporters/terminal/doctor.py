"""Terminal output of `lorafit doctor`: parts with aligned lines. Commands to paste are never wrapped."""

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorafit.diagnostics.finding import Finding, Part, Report
from lorafit.messages import _
from lorafit.planner import calibrate
from lorafit.planner.calibrate import Calibration
from lorafit.reporters.terminal.columns import show_rows, show_title, show_unwrapped
from lorafit.units import bytes_text

MARKS = {"told": ("·", "dim"), "good": ("✓", "green"), "poor": ("⚠", "yellow"), "bad": ("✗", "red")}


def show_report(report: Report, console: Console) -> None:
    """Print the findings of each part, and whether training works."""
    width = max(cell_len(finding.what) for finding in report.findings)
    for part, title in _titles().items():
        show_title(title, console)
        for finding in report.findings:
            if finding.part == part:
                _show(finding, width, console)
    console.print()
    console.print(_verdict(report), soft_wrap=True)


def _show(finding: Finding, width: int, console: Console) -> None:
    mark, style = MARKS[finding.mark]
    what = finding.what + " " * (width - cell_len(finding.what))
    bold = style if finding.mark in ("poor", "bad") else ""
    show_rows([[Text(mark, style), Text(what, bold), finding.found], *_fix(finding, width)], console)
    if finding.command:
        show_unwrapped(Text.assemble(" " * (width + 5), (finding.command, "bold cyan")), console)


def _fix(finding: Finding, width: int) -> Iterator[list[str | Text]]:
    if finding.fix:
        yield ["", " " * width, Text(finding.fix, "yellow")]


def _titles() -> dict[Part, str]:
    return {
        "machine": _("This machine"),
        "packages": _("Packages"),
        "works": _("Device and engines"),
        "places": _("Folders and model hub"),
    }


def _verdict(report: Report) -> Text:
    if report.works_on is None:
        return Text(_("✗ Training cannot run here yet: fix the items marked ✗ first."), "bold red")
    device, precision = report.works_on
    text = _("✓ Training works here: {device}, {precision}.").format(device=device, precision=precision)
    return Text(text, "bold green")


def show_calibrations(known: Calibration, console: Console) -> None:
    """Print this machine's measurements: matmul speed, Metal's limit, time and peak memory over their predictions."""
    console.print(Text(_("Stored in {path}").format(path=calibrate.calibration_file()), "dim"), soft_wrap=True)
    if known.core_gflops is not None:
        console.print(
            _("float32 matrix multiplication on all cores: {rate:.0f} GFLOP/s").format(rate=known.core_gflops)
        )
    if known.metal is not None:
        text = _("Metal lets the GPU use {usable} of {memory} unified memory ({date})")
        usable, memory = bytes_text(known.metal.usable_bytes), bytes_text(known.metal.memory_bytes)
        console.print(text.format(usable=usable, memory=memory, date=known.metal.when))
    if not known.measured:
        console.print(_("No run has been measured on this machine yet."))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in (
        _("configuration and model"),
        _("time, measured / predicted"),
        _("peak, measured / predicted"),
        _("count"),
        _("latest"),
    ):
        table.add_column(title, overflow="fold")
    table.columns[0].no_wrap = table.columns[-1].no_wrap = True
    for key, measured in sorted(known.measured.items()):
        memory = "?" if measured.memory is None else f"{measured.memory:.2f}"
        table.add_row(
            Text(key.replace(" ", "\n", 1)), f"{measured.slowness:.2f}", memory, str(measured.times), measured.when
        )
    console.print(table)
