"""Terminal output of the list of runs."""

from rich.console import Console
from rich.text import Text

from lorafit.messages import _
from lorafit.reporters.terminal.columns import show_rows
from lorafit.run_folders.directory import RunInfo


def show_runs(runs: list[RunInfo], console: Console) -> None:
    """Print one line for each of `runs`, in their order."""
    titles = (_("run"), _("model"), _("state"), _("steps"), _("validation loss"))
    rows: list[list[str | Text]] = [[Text(title, "dim") for title in titles]]
    for run in runs:
        steps = f"{run.step}/{'?' if run.steps is None else run.steps}"
        losses = [loss for loss in (run.valid_loss_before, run.valid_loss_after) if loss is not None]
        loss = " → ".join(f"{loss:.4f}" for loss in losses) or "?"
        rows.append([Text(run.name, "bold"), run.model or "?", state_text(run.state), steps, loss])
    show_rows(rows, console, (3,))


def state_text(state: str) -> str:
    """Return a run's state in the user's language."""
    words = {
        "finished": _("finished"),
        "running": _("running"),
        "paused": _("paused"),
        "stopped": _("stopped"),
        "interrupted": _("interrupted"),
    }
    return words.get(state, state)
