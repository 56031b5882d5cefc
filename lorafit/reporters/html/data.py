"""The HTML page of a data report, which any browser shows offline; its template is data.html."""

from dataclasses import dataclass

from lorafit.data.findings import DataReport, LengthStats
from lorafit.messages import _
from lorafit.reporters.html.page import render
from lorafit.reporters.text import data as words
from lorafit.units import count_text

WIDTH, HEIGHT, LEFT, BELOW, ABOVE = 960, 280, 48, 34, 18  # of the histogram and its margins, in SVG units


@dataclass(frozen=True)
class Bar:
    """A bar of the histogram, in SVG units. `label` is its text on the axis ("" for most bars), `title` its tooltip."""

    x: float
    y: float
    width: float
    height: float
    beyond: bool  # the bin starts at or above max_length
    label: str
    title: str


def data_page(report: DataReport) -> str:
    """Return the report as HTML."""
    titles, several = words.sample_titles(), len(report.files) > 1
    facts: dict[str, object] = {
        "title": words.title(report),
        "subtitle": words.subtitle(report),
        "figures": words.figures(report),
        "listings": words.listings(report),
        "lengths_title": _("Lengths in tokens, before truncation"),
        "bars": bars(report.lengths, report.max_length) if report.lengths else [],
        "limit": _limit(report.lengths, report.max_length) if report.lengths else None,
        "limit_label": _("max_length {n}").format(n=count_text(report.max_length)),
        "picture": {"width": WIDTH, "height": HEIGHT, "left": LEFT, "floor": HEIGHT - BELOW, "above": ABOVE},
        "most": count_text(max(report.lengths.rows)) if report.lengths else "",
        "samples": [
            (titles[kind], [(words.location_text(s.place, several), words.sample_text(s), s.pieces) for s in samples])
            for kind, samples in report.samples.items()
            if samples
        ],
        "legend": _("in the loss"),
        "other": _("context only (no loss)"),
    }
    return render("data.html", facts)


def bars(lengths: LengthStats, max_length: int) -> list[Bar]:
    """Return one bar for each bin; the highest bar fills the height of the chart."""
    pitch = _pitch(lengths)
    room, most, every = HEIGHT - BELOW - ABOVE, max(lengths.rows), max(len(lengths.edges) // 8, 1)
    labelled = range(0, len(lengths.edges) - every, every)  # leaves room for the last label, which is always drawn
    drawn = []
    for place, (edge, rows) in enumerate(zip(lengths.edges, lengths.rows, strict=True)):
        last = edge == lengths.edges[-1]
        span = f"{count_text(edge)}+" if last else f"{count_text(edge)}–{count_text(lengths.edges[place + 1] - 1)}"
        height = max(room * rows / most, 1.5 if rows else 0)
        drawn.append(
            Bar(
                x=LEFT + pitch * place + 1,
                y=HEIGHT - BELOW - height,
                width=pitch - 2,
                height=height,
                beyond=edge >= max_length,
                label=f"{count_text(edge)}+" if last else count_text(edge) if place in labelled else "",
                title=_("{span} tokens; rows: {rows}").format(span=span, rows=count_text(rows)),
            )
        )
    return drawn


def _pitch(lengths: LengthStats) -> float:
    return (WIDTH - LEFT) / len(lengths.edges)


def _limit(lengths: LengthStats, max_length: int) -> float | None:
    """Return the x of max_length, or None if it is beyond the last edge or there is only one bin."""
    if max_length > lengths.edges[-1] or len(lengths.edges) < 2:
        return None
    return LEFT + _pitch(lengths) * max_length / lengths.edges[1]
