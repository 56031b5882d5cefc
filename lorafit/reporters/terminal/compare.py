"""Terminal output of a comparison: a table of figures, then answers side by side; plain lines in a pipe."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lorafit.evaluation.compare import Comparison, ModelResult
from lorafit.messages import _, aside, labelled
from lorafit.reporters.terminal.columns import show_rows
from lorafit.reporters.text import compare as words

MAX_QUESTIONS = 5  # questions on a terminal; the page has all
MIN_COLUMN_WIDTH = 28  # cells; a narrower column of text is not readable
STYLES: dict[words.Kind, str] = {
    "plain": "",
    "same": "dim",
    "cited": "bold",
    "agrees": "bold green",
    "differs": "yellow",
}


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print figures, notes and answers."""
    asked, piped = len(comparison.questions), not console.is_terminal
    console.print(Text(words.subtitle(comparison), "dim"), soft_wrap=piped)
    show_rows(_figures(comparison), console, range(1, len(comparison.results) + 1))
    for note in comparison.notes:
        console.print(Text(f"⚠ {note}", "yellow"), soft_wrap=piped)
    fits = console.width >= MIN_COLUMN_WIDTH * len(comparison.results)
    show = _lines if piped else _side_by_side if fits else _one_below_another
    shown = asked if piped else min(asked, MAX_QUESTIONS)
    for place in range(shown):
        console.print(show(place, comparison), soft_wrap=piped)
    if shown < asked:
        console.print(Text("\n" + _("More questions on the HTML page: {n}").format(n=asked - shown), "dim"))


def _figures(comparison: Comparison) -> list[list[str | Text]]:
    rows: list[list[str | Text]] = [["", *(Text(side.name, "bold") for side in comparison.results)]]
    for line in words.lines(comparison):
        rows.append([_cell(Text(line.label), line.note), *(_figure(cell) for cell in line.cells)])
    return rows


def _figure(cell: words.ComparisonCell) -> Text:
    style = {True: "green", False: "red", None: ""}[cell.better]
    return _cell(Text(cell.text, style), cell.note)


def _cell(text: Text, note: str) -> Text:
    return Text.assemble(text, "\n", (note, "dim")) if note else text


def _side_by_side(place: int, comparison: Comparison) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="dim", pad_edge=False)
    for side in comparison.results:
        table.add_column(Text(side.name), ratio=1, overflow="fold")
    table.add_row(*(Group(*_answer(comparison, side, place)) for side in comparison.results))
    return Group(*_asked(place, comparison), table)


def _one_below_another(place: int, comparison: Comparison) -> RenderableType:
    answers = ((Text(side.name, "dim"), *_answer(comparison, side, place)) for side in comparison.results)
    return Group(*_asked(place, comparison), *(text for answer in answers for text in answer))


def _asked(place: int, comparison: Comparison) -> list[Text]:
    question = comparison.questions[place]
    asked = [Text(""), Text(words.question_text(place + 1, question), "bold")]
    # The label gets its own line: rich would break a Chinese text, which has no spaces, right after it.
    return asked if question.reference is None else [*asked, Text(_("reference"), "dim"), Text(question.reference)]


def _answer(comparison: Comparison, side: ModelResult, place: int) -> list[Text]:
    text = Text.assemble(*((piece, STYLES[kind]) for piece, kind in words.answer_pieces(comparison, side, place)))
    note = words.answer_note(side.answers[place])
    return [*([text] if text else []), *([Text(aside("", note).strip(), "dim")] if note else [])]


def _lines(place: int, comparison: Comparison) -> RenderableType:
    """Return a line for each text, for a pipe."""
    question = comparison.questions[place]
    told = [] if question.reference is None else [(_("reference"), Text(question.reference))]
    told += [(side.name, Text(" ").join(_answer(comparison, side, place))) for side in comparison.results]
    asked = Text("\n" + words.question_text(place + 1, question))
    return Group(asked, *(Text.assemble(labelled(label, ""), text) for label, text in told))
