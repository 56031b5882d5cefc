"""What helps against a death? A restart as it was, with less memory at a time, with another environment; or advice and an end.

Decisions only: nothing is started here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lorafit.messages import _

MEMORY = ("oom_killer", "memory", "metal_memory")
FINAL = ("error", "bug", "asked", "disk")
RELAXED = {"AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "1"}  # Metal's watchdog waits longer; the display may stutter
MOST, MOST_SMALLER = 3, 8  # restarts in a row without a new checkpoint: as it was; each with less at a time


@dataclass(frozen=True)
class PastDeath:
    """A death of this run: its cause, the steps done by then, and the step of the last good checkpoint."""

    cause: str
    step: int
    saved: int


@dataclass(frozen=True)
class Recovery:
    """What to do. `text` says it to the user; without a restart it is advice."""

    restart: bool
    text: str
    shrink: bool = False
    environ: dict[str, str] = field(default_factory=dict)
    recycle_every: int | None = None


def cure(deaths: Sequence[PastDeath], system: str, relaxed: bool) -> Recovery:
    """What helps now that the last of `deaths` happened on `system`; `relaxed`: Metal's watchdog was asked to wait already."""
    last = deaths[-1]
    row = in_a_row(deaths)
    alike = sum(1 for died in row if died.cause == last.cause)
    if last.cause in FINAL or len(row) > MOST_SMALLER:
        return Recovery(False, advice(last.cause))
    if last.cause in MEMORY:
        return Recovery(True, _("It goes on with less memory at a time."), shrink=True)
    if last.cause == "watchdog" and not relaxed:
        text = _("It goes on with AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1: macOS waits longer, and the display may stutter.")
        return Recovery(True, text, environ=RELAXED)
    if last.cause == "watchdog":
        return Recovery(True, _("It goes on with smaller pieces of work."), shrink=True)
    if alike > (1 if last.cause == "metal_bug" else MOST):
        return Recovery(False, advice(last.cause))
    if last.cause == "handles":
        every = max((last.step - last.saved) // 2, 1)
        return Recovery(
            True, _("It goes on in a new process, and in another every {n} steps.").format(n=every), recycle_every=every
        )
    suspect = last.cause == "command_buffer" or (last.cause == "killed" and system == "Darwin")
    if suspect and alike > 1:  # macOS kills for lack of memory without a word
        return Recovery(True, _("It goes on with less memory at a time."), shrink=True)
    return Recovery(True, _("It goes on in a new process."))


def in_a_row(deaths: Sequence[PastDeath]) -> list[PastDeath]:
    """The last of `deaths` between which no new checkpoint was made."""
    row: list[PastDeath] = []
    for died in reversed(deaths):
        if row and died.saved != row[0].saved:
            break
        row.append(died)
    return row


def advice(cause: str) -> str:
    """What a person can do where nothing of ours has helped."""
    memory = _(
        "Close other programs that use memory; or go on with --recompute 999, or take a smaller model or --max_length."
    )
    known = {
        "oom_killer": memory,
        "memory": memory,
        "metal_memory": memory,
        "watchdog": _("Let the display sleep while it trains: `pmset displaysleepnow`, then go on with --resume."),
        "metal_bug": _("Go on with --device cpu, or with a newer PyTorch or macOS."),
        "cuda": _("Look at `nvidia-smi` and `dmesg`; after a restart of the machine go on with --resume."),
        "disk": _("Make room, then go on with --resume."),
        "asked": _("Go on with --resume."),
        "hung": _("Where it hung stands in worker.log in the run's folder; go on with --resume."),
    }
    return known.get(
        cause, _("What it said last stands in worker.log in the run's folder; go on with --resume, or report it.")
    )
