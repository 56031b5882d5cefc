"""Text in aligned columns: wrapped to the width of a terminal, whole lines in a file or pipe."""

from collections.abc import Collection, Sequence
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

GAP = 2  # cells between columns


def show_rows(
    rows: Sequence[Sequence[str | Text]], console: Console, right: Collection[int] = (), fold: bool = False
) -> None:
    """Print rows of equal length, each column as wide as its widest cell; columns in `right` are right-aligned.

    `fold`: wrap to the console's width in a file or pipe too, for long texts that are read and not searched.
    """
    texts = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    if console.is_interactive:
        console.print(_wrapped_table(texts, console, right))
        return
    if fold:
        with console.capture() as capture:
            console.print(_wrapped_table(texts, console, right))
        console.print(Text("\n".join(line.rstrip() for line in capture.get().splitlines())), soft_wrap=True)
        return
    widths = [max(map(_width, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        for pieces in zip_longest(*(cell.split("\n") for cell in row), fillvalue=Text("")):
            padded = [
                _padded(p, width, place in right) for place, (p, width) in enumerate(zip(pieces, widths, strict=True))
            ]
            line = Text(" " * GAP).join(padded)
            line.rstrip()
            console.print(line, soft_wrap=True)


def show_title(title: str, console: Console) -> None:
    """Print a blank line and a heading."""
    console.print()
    console.print(Text(title, "bold"), soft_wrap=True)


def show_line(text: Text | str, console: Console) -> None:
    """Print a sentence: wrapped on a terminal, a whole line in a file or pipe."""
    console.print(text, soft_wrap=not console.is_interactive)


def show_unwrapped(text: Text, console: Console) -> None:
    """Print text that the user pastes; it is never wrapped."""
    console.print(text, soft_wrap=True)


def _width(cell: Text) -> int:
    return max(map(cell_len, cell.plain.split("\n")))


def _padded(text: Text, width: int, right: bool) -> Text:
    space = " " * (width - cell_len(text.plain))
    return Text.assemble(space, text) if right else Text.assemble(text, space)


def _wrapped_table(rows: list[list[Text]], console: Console, right: Collection[int]) -> Table:
    table = Table.grid(padding=(0, GAP, 0, 0))
    for place, column in enumerate(zip(*rows, strict=True)):
        narrow = max(map(_width, column)) <= console.width // 3
        table.add_column(overflow="fold", no_wrap=narrow, justify="right" if place in right else "left")
    for row in rows:
        table.add_row(*row)
    return table
