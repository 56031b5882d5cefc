"""How does the list of runs look on a terminal?"""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorafit.messages import _
from lorafit.rundir import RunInfo


def show_runs(runs: list[RunInfo], console: Console) -> None:
    """Print a line a run, the latest first."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title, justify in ((_("run"), "left"), (_("model"), "left"), (_("state"), "left"), (_("steps"), "right")):
        table.add_column(title, justify="right" if justify == "right" else "left", overflow="fold")
    table.add_column(_("held-out loss"), no_wrap=True)
    for run in runs:
        steps = f"{run.step}/{'?' if run.steps is None else run.steps}"
        losses = [loss for loss in (run.valid_loss_before, run.valid_loss_after) if loss is not None]
        loss = " → ".join(f"{loss:.4f}" for loss in losses) or "?"
        table.add_row(Text(run.name, "bold"), Text(run.model or "?"), Text(state_text(run.state)), steps, loss)
    console.print(table)


def state_text(state: str) -> str:
    """A run's state in the user's language."""
    words = {
        "finished": _("finished"),
        "running": _("running"),
        "stopped": _("stopped"),
        "interrupted": _("interrupted"),
    }
    return words.get(state, state)
