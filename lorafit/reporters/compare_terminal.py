"""How does a comparison look on a terminal? A table of figures, then answers side by side; plain lines in a pipe."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lorafit.compare import Comparison, Question, Side
from lorafit.messages import _
from lorafit.reporters import compare_words as words

SHOWN = 5  # questions; the page has them all
NARROWEST = 28  # cells that a column of text needs to be readable
STYLES: dict[words.Kind, str] = {
    "plain": "",
    "same": "dim",
    "cited": "bold",
    "agrees": "bold green",
    "differs": "yellow",
}


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print figures, notes and answers."""
    console.print(Text(words.subtitle(comparison), "dim"), soft_wrap=not console.is_terminal)
    console.print(_figures(comparison))
    for note in comparison.notes:
        console.print(Text(f"⚠ {note}", "yellow"), soft_wrap=not console.is_terminal)
    shown = comparison.questions[:SHOWN] if console.is_terminal else comparison.questions
    show = _side_by_side if _fits(comparison, console) else _one_below_another
    for place in range(len(shown)):
        console.print(show(place, comparison), soft_wrap=not console.is_terminal)
    if len(shown) < len(comparison.questions):
        more = len(comparison.questions) - len(shown)
        console.print(Text(_("{n} more questions are on the page.").format(n=more), "dim"))


def _fits(comparison: Comparison, console: Console) -> bool:
    return console.is_terminal and console.width >= NARROWEST * len(comparison.sides)


def _figures(comparison: Comparison) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for side in comparison.sides:
        table.add_column(side.name, justify="right", overflow="fold")
    for line in words.lines(comparison):
        table.add_row(
            Group(Text(line.label), Text(line.note, "dim")) if line.note else Text(line.label), *map(_cell, line.cells)
        )
    return table


def _cell(cell: words.Cell) -> RenderableType:
    style = {True: "green", False: "red", None: ""}[cell.better]
    return Group(Text(cell.text, style), Text(cell.note, "dim")) if cell.note else Text(cell.text, style)


def _side_by_side(place: int, comparison: Comparison) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="dim", pad_edge=False)
    for side in comparison.sides:
        table.add_column(side.name, ratio=1, overflow="fold")
    table.add_row(*(_answer(comparison, side, place) for side in comparison.sides))
    return Group(*_asked(place, comparison.questions[place]), table)


def _one_below_another(place: int, comparison: Comparison) -> RenderableType:
    answers = [Text.assemble((f"{s.name}: ", "dim"), _answer(comparison, s, place)) for s in comparison.sides]
    return Group(*_asked(place, comparison.questions[place]), *answers)


def _asked(place: int, question: Question) -> list[RenderableType]:
    asked: list[RenderableType] = [Text(""), Text(words.question_text(place + 1, question), "bold")]
    if question.reference is not None:
        asked.append(Text.assemble((_("reference: "), "dim"), question.reference))
    return asked


def _answer(comparison: Comparison, side: Side, place: int) -> Text:
    text = Text.assemble(*((piece, STYLES[kind]) for piece, kind in words.side_pieces(comparison, side, place)))
    note = words.answer_note(side.answers[place])
    return Text.assemble(text, (f" … ({note})", "dim")) if note else text
