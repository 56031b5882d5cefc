"""How is a data report shown on a terminal? Figures, tables, a histogram of bars, and samples with their targets coloured."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorafit.data.findings import DataReport, Lengths, Shown
from lorafit.messages import _
from lorafit.reporters import data_words as words
from lorafit.units import count_text

BAR = 40  # characters of the longest bar
PIECE = 240  # characters of a piece of a sample; of longer ones the middle is left out
TARGET = "bold green"


def show_data(report: DataReport, console: Console) -> None:
    """Print the report; without colours targets stand in ⟦ ⟧."""
    show_figures(report, console)
    for listing in words.listings(report):
        _heading(listing.title, console)
        console.print(_table(listing))
    if report.lengths is not None:
        _heading(_("Lengths in tokens, before any cut"), console)
        console.print(_bars(report.lengths, report.max_length))
    for kind, samples in report.samples.items():
        if samples:
            _heading(words.sample_titles()[kind], console)
        for number, sample in enumerate(samples):
            if number:
                _blank(console)
            _sample(sample, len(report.files) > 1, console)


def show_figures(report: DataReport, console: Console) -> None:
    """Print the report's figures alone."""
    console.print(Text(words.title(report), "bold"))
    console.print(Text(words.subtitle(report), "dim"))
    _blank(console)
    console.print(_figures(report))


def _blank(console: Console) -> None:
    console.print()


def _heading(text: str, console: Console) -> None:
    _blank(console)
    console.print(Text(text, "bold cyan"))


def _figures(report: DataReport) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for justify in ("left", "left", "right", "left"):
        table.add_column(justify=justify)
    for figure in words.figures(report):
        mark = {True: Text("✓", "green"), False: Text("⚠", "yellow"), None: Text("")}[figure.good]
        table.add_row(mark, Text(figure.label), Text(figure.value, "bold"), Text(figure.note, "dim", overflow="fold"))
    return table


def _table(listing: words.Listing) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for place, column in enumerate(listing.columns):
        table.add_column(
            Text(column),
            justify="right" if place in listing.figures else "left",
            no_wrap=place in listing.figures,
            overflow="fold",
        )
    for row in listing.rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    return table


def _bars(lengths: Lengths, max_length: int) -> Table:
    """A line a bin; what is longer than `max_length` in another colour."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(justify="right")
    table.add_column(justify="right")
    most = max(lengths.rows)
    for edge, rows in zip(lengths.edges, lengths.rows, strict=True):
        style = "yellow" if edge >= max_length else "cyan"
        bar = "█" * round(BAR * rows / most) or ("▏" if rows else "")
        last = edge == lengths.edges[-1]
        table.add_row(f"{count_text(edge)}{'+' if last else ' '}", count_text(rows), Text(bar, style))
    return table


def _sample(sample: Shown, several: bool, console: Console) -> None:
    console.print(Text(f"{words.place_text(sample.place, several)}  {words.sample_text(sample)}", "dim"))
    text = Text()
    for piece, is_target in sample.pieces:
        marked = is_target and console.color_system is None
        text.append(f"⟦{_middle(piece)}⟧" if marked else _middle(piece), TARGET if is_target else "")
    text.rstrip()
    console.print(text, soft_wrap=not console.is_interactive)


def _middle(text: str) -> str:
    """`text` without its middle where it is long."""
    if len(text) <= PIECE:
        return text
    left_out = _("… {n} characters …").format(n=count_text(len(text) - PIECE))
    return f"{text[: PIECE // 2]} {left_out} {text[-PIECE // 2 :]}"
