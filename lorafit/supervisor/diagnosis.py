"""Diagnosis of a worker's end from its exit code, its last output and the system's count of OOM kills."""

import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lorafit.distributed.collectives import RankLost
from lorafit.errors import EngineError, LorafitError
from lorafit.messages import _
from lorafit.units import seconds_text

# Lower-case substrings of backends' messages, and the cause that each one shows. The first match wins.
CAUSE_PATTERNS = (
    ("callbackerroroutofmemory", "metal_memory"),
    ("callbackerrorimpactinginteractivity", "watchdog"),
    ("callbackerrortimeout", "watchdog"),
    ("callbackerrorhang", "watchdog"),
    ("0000000e:internal error", "watchdog"),
    ("callbackerrorsubmissionsignored", "banned"),
    ("resource limit (", "handles"),
    ("command buffer exited with error status", "command_buffer"),
    ("llvm error", "metal_bug"),
    ("failed assertion", "metal_bug"),
    ("cuda error", "cuda"),
    ("cublas_status", "cuda"),
    ("fallen off the bus", "cuda"),
    ("std::bad_alloc", "memory"),
    ("memoryerror", "memory"),
    ("out of memory", "memory"),
    ("unable to allocate", "memory"),
    ("cannot allocate memory", "memory"),
    ("no space left on device", "disk"),
)
# Output of a worker that continues with wrong values, because PyTorch raises no error.
FATAL_PATTERNS = ("command buffer exited with error status", "kiogpucommandbuffercallbackerror")
CRASH_CODES = tuple(-number for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE))
STOP_CODES = tuple(-number for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT))


@dataclass(frozen=True)
class WorkerExit:
    """The observations of a worker's end. `oom_kills` counts the system's OOM kills since the worker started."""

    code: int | None  # exit code; negative: the signal
    tail: Sequence[str] = ()  # last lines of stderr
    error: LorafitError | None = None
    bug: str | None = None  # the last line of its traceback
    oom_kills: int = 0
    silent_seconds: float | None = None  # time without progress after which the supervisor killed it
    fatal_line: str | None = None  # stderr line for which the supervisor killed it


@dataclass(frozen=True)
class Diagnosis:
    """A `cause` for programs, `text` for the user, and `evidence`: the output line that shows the cause."""

    cause: str
    text: str
    evidence: str | None = None


def diagnose(end: WorkerExit) -> Diagnosis:
    """Return the diagnosis of a worker's end."""
    if end.silent_seconds is not None:
        return _death("hung", None, time=seconds_text(end.silent_seconds))
    if end.fatal_line is not None:
        return _death(_cause((end.fatal_line,)) or "command_buffer", end.fatal_line)
    if end.error is not None:
        return _diagnose_error(end.error, end.oom_kills)
    if end.bug is not None:
        return _diagnose_bug(end.bug)
    if end.code == -signal.SIGKILL:
        return _death("oom_killer" if end.oom_kills else "killed", None)
    if end.code in STOP_CODES:
        return _death("asked", None, signal=_name(end.code))
    cause = _cause(end.tail)
    if cause is not None:
        return _death(cause, _line(end.tail, cause))
    if end.code in CRASH_CODES:
        return _death("crashed", _last(end.tail), signal=_name(end.code))
    if end.code == -signal.SIGABRT:
        return _death("aborted", _last(end.tail))
    return _death("vanished", _last(end.tail), code=end.code)


def is_fatal(line: str) -> bool:
    """Return whether a worker that writes `line` computes wrong values from then on."""
    return any(text in line.lower() for text in FATAL_PATTERNS)


def cause_text(cause: str) -> str:
    """Return the user's sentence for `cause`, with {placeholders} to fill in."""
    return {
        "oom_killer": _("The system ran out of memory and killed the training process."),
        "memory": _("The training process ran out of memory and exited."),
        "metal_memory": _("The GPU ran out of memory (Metal)."),
        "watchdog": _("macOS stopped the work on the GPU, because it blocked the display for too long."),
        "banned": _("macOS no longer lets the process use the GPU, because of earlier errors."),
        "command_buffer": _("A GPU task failed (Metal); results computed after it may be wrong."),
        "handles": _("Metal ran out of buffers for this process."),
        "metal_bug": _("Metal could not compile or run an operation, and ended the process."),
        "cuda": _("The CUDA device failed."),
        "disk": _("The disk is full."),
        "lost": _("One of the training processes exited or does not respond."),
        "hung": _("The training process showed no progress for {time}."),
        "killed": _("The training process was killed from outside (SIGKILL)."),
        "asked": _("The training process was ended from outside ({signal})."),
        "crashed": _("The training process crashed ({signal})."),
        "aborted": _("The training process aborted (SIGABRT)."),
        "vanished": _("The training process exited without a message (exit code {code})."),
        "error": "{what}",
    }[cause]


def _diagnose_error(error: LorafitError, oom_kills: int) -> Diagnosis:
    """Diagnose a LorafitError. A new process helps only after a failed device or a lost rank."""
    if isinstance(error, EngineError):
        if isinstance(error, RankLost):
            short = oom_kills or _cause([error.found or ""]) == "memory"
            return _death("memory" if short else "lost", error.found)
        cause = _cause(filter(None, (error.found, error.what)))
        if cause in ("metal_memory", "watchdog", "banned", "handles", "command_buffer", "cuda"):
            return _death(cause, error.found)
    return Diagnosis("error", error.what, error.found)


def _diagnose_bug(line: str) -> Diagnosis:
    """Diagnose an unexpected exception: out of memory or a failed device, otherwise a bug in lorafit."""
    cause = _cause((line,))
    return Diagnosis("bug", line) if cause is None else _death(cause, line)


def _death(cause: str, words: str | None, **facts: object) -> Diagnosis:
    return Diagnosis(cause, cause_text(cause).format(**facts), words)


def _cause(lines: Iterable[str]) -> str | None:
    text = "\n".join(lines).lower()
    return next((cause for part, cause in CAUSE_PATTERNS if part in text), None)


def _line(lines: Sequence[str], cause: str) -> str | None:
    """Return the last line that shows `cause`."""
    parts = [part for part, told in CAUSE_PATTERNS if told == cause]
    return next((line for line in reversed(lines) if any(part in line.lower() for part in parts)), None)


def _last(lines: Sequence[str]) -> str | None:
    return next((line.strip() for line in reversed(lines) if line.strip()), None)


def _name(code: int | None) -> str:
    return signal.Signals(-(code or 0)).name
