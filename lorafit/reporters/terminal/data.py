"""Terminal output of a data report: figures, tables, a histogram, and samples with tokens in the loss colored."""

from rich.console import Console
from rich.text import Text

from lorafit.data.findings import DataReport, LengthStats, ShownSample
from lorafit.messages import _
from lorafit.reporters.terminal.columns import show_line, show_rows
from lorafit.reporters.text import data as words
from lorafit.units import count_text

BAR = 40  # characters of the longest bar
MAX_PIECE = 240  # characters shown of a piece of a sample; the middle of a longer piece is left out
TARGET = "bold green"


def show_data(report: DataReport, console: Console) -> None:
    """Print the report. Without colors, text in the loss is marked with ⟦ ⟧."""
    show_figures(report, console)
    for listing in words.listings(report):
        _heading(listing.title, console)
        titles = [Text(column, "dim") for column in listing.columns]
        show_rows([titles, *listing.rows], console, listing.figures, fold=True)
    if report.lengths is not None:
        _heading(_("Lengths in tokens, before truncation"), console)
        show_rows(_bars(report.lengths, report.max_length), console, (0, 1))
    for kind, samples in report.samples.items():
        if samples:
            _heading(words.sample_titles()[kind], console)
        for number, sample in enumerate(samples):
            if number:
                _blank(console)
            _sample(sample, len(report.files) > 1, console)


def show_figures(report: DataReport, console: Console) -> None:
    """Print only the title and the figures of the report."""
    heads = [[Text(words.title(report), "bold")], [Text(words.subtitle(report), "dim")]]
    show_rows(heads, console, fold=True)
    _blank(console)
    show_rows(_figures(report), console, (2,), fold=True)


def _blank(console: Console) -> None:
    console.print()


def _heading(text: str, console: Console) -> None:
    _blank(console)
    console.print(Text(text, "bold cyan"))


def _figures(report: DataReport) -> list[list[str | Text]]:
    marks = {True: Text("✓", "green"), False: Text("⚠", "yellow"), None: Text("")}
    return [
        [marks[figure.good], figure.label, Text(figure.value, "bold"), Text(figure.note, "dim")]
        for figure in words.figures(report)
    ]


def _bars(lengths: LengthStats, max_length: int) -> list[list[str | Text]]:
    """Return a row for each bin from the first that is not empty; from `max_length` on, bins have another color."""
    most = max(lengths.rows)
    bars: list[list[str | Text]] = [[Text(_("tokens"), "dim"), Text(_("rows"), "dim"), ""]]
    first = next((place for place, rows in enumerate(lengths.rows) if rows), 0)
    for edge, rows in zip(lengths.edges[first:], lengths.rows[first:], strict=True):
        style = "yellow" if edge >= max_length else "cyan"
        bar = "█" * round(BAR * rows / most) or ("▏" if rows else "")
        last = edge == lengths.edges[-1]
        bars.append([f"{count_text(edge)}{'+' if last else ' '}", count_text(rows), Text(bar, style)])
    return bars


def _sample(sample: ShownSample, several: bool, console: Console) -> None:
    console.print(Text(f"{words.location_text(sample.place, several)}  {words.sample_text(sample)}", "dim"))
    text = Text()
    for piece, is_target in sample.pieces:
        marked = is_target and console.color_system is None
        text.append(f"⟦{_middle(piece)}⟧" if marked else _middle(piece), TARGET if is_target else "")
    text.rstrip()
    show_line(text, console)


def _middle(text: str) -> str:
    """Return `text`, without its middle if it is longer than MAX_PIECE."""
    if len(text) <= MAX_PIECE:
        return text
    left_out = _("… {n} characters omitted …").format(n=count_text(len(text) - MAX_PIECE))
    return f"{text[: MAX_PIECE // 2]} {left_out} {text[-MAX_PIECE // 2 :]}"
