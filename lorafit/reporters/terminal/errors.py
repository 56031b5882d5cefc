"""Terminal output of an error: what happened, where, what was found and how to fix it; no traceback."""

import re

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lorafit.data.text_checks import visible
from lorafit.errors import LorafitError
from lorafit.messages import _, labelled


def _repeats(first: str, text: str) -> bool:
    """Return whether the first line has `text` already, as whole words."""
    return re.search(rf"(?<!\w){re.escape(text.lstrip('-'))}(?!\w)", first) is not None


def show_error(error: LorafitError, console: Console) -> None:
    """Print `error` as a panel, or as plain lines if the console is not interactive."""
    parts = [(_("where"), error.where), (_("details"), error.found), (_("fix"), error.fix)]
    what = visible(error.what)  # names from files and arguments may hold codes that a terminal obeys
    rows = [(label, visible(text)) for label, text in parts if text and not _repeats(error.what, text)]
    if not console.is_interactive:
        console.print(Text(_("Error: {what}").format(what=what)), soft_wrap=True)
        for label, text in rows:
            console.print(Text(labelled(label, text).replace("\n", "\n  ")), soft_wrap=True)
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    for label, text in rows:
        table.add_row(Text(label, "dim"), Text(text, overflow="fold"))
    body = Table.grid()
    body.add_row(Text(what, "bold"))
    if rows:
        body.add_row(table)
    console.print(Panel(body, title=_("Error"), title_align="left", border_style="red"))
