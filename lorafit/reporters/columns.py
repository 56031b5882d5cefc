"""How do rows of words stand in line? On a terminal folded within its width, in a file or pipe as whole lines."""

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

GAP = 2  # cells between columns


def show_rows(rows: Sequence[Sequence[str | Text]], console: Console) -> None:
    """Print rows of one length, each column as wide as its widest cell."""
    texts = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    if console.is_interactive:
        _show_folded(texts, console)
        return
    widths = [max(cell_len(cell.plain) for cell in column) for column in zip(*texts, strict=True)]
    for row in texts:
        padded = [Text.assemble(c, " " * (w - cell_len(c.plain))) for c, w in zip(row, widths, strict=True)]
        line = Text(" " * GAP).join(padded)
        line.rstrip()
        console.print(line, soft_wrap=True)


def show_title(title: str, console: Console) -> None:
    """Print the title of a part, apart from what stands before."""
    console.print()
    console.print(Text(title, "bold"), soft_wrap=True)


def show_whole(text: Text, console: Console) -> None:
    """Print what is to be pasted: never broken over lines."""
    console.print(text, soft_wrap=True)


def _show_folded(rows: list[list[Text]], console: Console) -> None:
    table = Table.grid(padding=(0, GAP, 0, 0))
    for column in zip(*rows, strict=True):
        narrow = max(cell_len(cell.plain) for cell in column) <= console.width // 3
        table.add_column(overflow="fold", no_wrap=narrow)
    for row in rows:
        table.add_row(*row)
    console.print(table)
