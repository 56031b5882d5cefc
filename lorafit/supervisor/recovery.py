"""Recovery from a worker's death: a restart, perhaps with less memory or another environment, or advice to the user.

This module decides; it starts nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lorafit.messages import _

MEMORY = ("oom_killer", "memory", "metal_memory")
FINAL = ("error", "bug", "asked", "disk")
RELAXED_WATCHDOG = {"AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "1"}  # Metal's watchdog waits longer; the display may stutter
MAX_DEATHS_OF_ONE_CAUSE, MAX_DEATHS = (
    3,
    8,
)  # deaths without a new checkpoint: of one cause, unless less memory helps; of all causes


@dataclass(frozen=True)
class PastDeath:
    """A death of a worker: its cause, the last completed step, and the step of the last valid checkpoint."""

    cause: str
    step: int
    saved: int


@dataclass(frozen=True)
class Recovery:
    """A decision after a death. `text` tells it to the user; without a restart `text` is advice.

    `shrink`: use less memory; `environ`: variables to set; `recycle_every`: steps after which to take a new process.
    """

    restart: bool
    text: str
    shrink: bool = False
    environ: dict[str, str] = field(default_factory=dict)
    recycle_every: int | None = None


def choose_recovery(deaths: Sequence[PastDeath], system: str, relaxed: bool) -> Recovery:
    """Return the recovery from the last of `deaths`.

    `system` is platform.system(); `relaxed`: Metal's watchdog already waits longer.
    """
    last = deaths[-1]
    row = deaths_since_checkpoint(deaths)
    alike = sum(1 for died in row if died.cause == last.cause)
    if last.cause in FINAL or len(row) > MAX_DEATHS:
        return Recovery(False, advice(last.cause))
    if last.cause in MEMORY:
        return Recovery(True, _("Training continues with smaller micro-batches."), shrink=True)
    if last.cause == "watchdog" and not relaxed:
        text = _(
            "Training continues with AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1: macOS waits longer, and the display may stutter."
        )
        return Recovery(True, text, environ=RELAXED_WATCHDOG)
    if last.cause == "watchdog":
        return Recovery(
            True, _("Training continues with smaller micro-batches, so that each GPU task is shorter."), shrink=True
        )
    if alike > (1 if last.cause == "metal_bug" else MAX_DEATHS_OF_ONE_CAUSE):
        return Recovery(False, advice(last.cause))
    if last.cause == "handles":
        every = max((last.step - last.saved) // 2, 1)
        return Recovery(
            True,
            _("Training continues in a new process. Steps between further restarts: {n}.").format(n=every),
            recycle_every=every,
        )
    suspect = last.cause == "command_buffer" or (last.cause == "killed" and system == "Darwin")
    if suspect and alike > 1:  # macOS gives no reason when it kills for lack of memory
        return Recovery(True, _("Training continues with smaller micro-batches."), shrink=True)
    return Recovery(True, _("Training continues in a new process."))


def deaths_since_checkpoint(deaths: Sequence[PastDeath]) -> list[PastDeath]:
    """Return the last of `deaths` without a new checkpoint between them, the latest first."""
    row: list[PastDeath] = []
    for died in reversed(deaths):
        if row and died.saved != row[0].saved:
            break
        row.append(died)
    return row


def advice(cause: str, resumable: bool = True) -> str:
    """Return what the user can do after `cause` if no restart helps. `resumable`: a part of the run was saved."""
    if not resumable and cause in MEMORY:
        return _("Use a smaller `--max_length`, `--quantization 4bit` or a smaller model, or close other programs.")
    if not resumable:
        return _("Run the command again: no step was completed, so nothing was saved.")
    memory = _(
        "Close other programs that use memory, or add --recompute 999, and resume with "
        "--resume; or start a new run with a smaller model or --max_length."
    )
    known = {
        "oom_killer": memory,
        "memory": memory,
        "metal_memory": memory,
        "watchdog": _("Resume with --resume, and let the display sleep during training: `pmset displaysleepnow`."),
        "metal_bug": _("Resume with --resume and --device cpu, or with a newer PyTorch or macOS."),
        "cuda": _("Check `nvidia-smi` and `dmesg`; after restarting the machine, resume with --resume."),
        "disk": _("Free disk space, then resume with --resume."),
        "asked": _("Resume with --resume."),
        "hung": _("Resume with --resume; worker.log in the run folder shows where the process hung."),
    }
    return known.get(
        cause,
        _(
            "Resume with --resume, or report the problem; the last output of the process is in "
            "worker.log in the run folder."
        ),
    )
