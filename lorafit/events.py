"""Events of a run: one frozen dataclass for each kind, written as one JSON object on each line.

`events.jsonl` in the run's folder is the only record. The training process writes it, and the supervisor when no
training process is alive; interfaces only read it. docs/events.md describes each event for other programs.
"""

import errno
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Event:
    """A fact about a run. `time` is seconds since 1970 (UTC), `step` the last finished step (0 before the first)."""

    name: ClassVar[str] = ""
    time: float = field(default_factory=time.time)
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class Stage(Event):
    """The run starts a long operation; `text` names it for the user."""

    name: ClassVar[str] = "stage"
    text: str


@dataclass(frozen=True, kw_only=True)
class Planned(Event):
    """The plan: one dict for each choice with `setting`, `value` and `reason`, in the user's language."""

    name: ClassVar[str] = "planned"
    choices: list[dict[str, str]]
    predicted_peak_bytes: int
    available_bytes: int


@dataclass(frozen=True, kw_only=True)
class Rehearsed(Event):
    """The preflight check: time and peak memory of a few discarded micro-batches.

    `expected_seconds`, `low_seconds` and `high_seconds` predict the whole run from that measurement.
    """

    name: ClassVar[str] = "rehearsed"
    seconds: float
    peak_bytes: int | None
    predicted_peak_bytes: int
    tokens_per_second: float
    expected_seconds: float
    low_seconds: float
    high_seconds: float


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """The plan is final and training starts; sent again after a resume. `steps` counts the whole run."""

    name: ClassVar[str] = "started"
    run: str
    model: str
    engine: str
    device: str
    steps: int
    train_samples: int
    valid_samples: int
    trainable_parameters: int


@dataclass(frozen=True, kw_only=True)
class StepDone(Event):
    """One optimizer update: mean `loss` (nats) over `target_tokens`, `grad_norm` before clipping.

    `peak_bytes` is the peak memory of the process (CPU) or the device. `data_seconds` is the part of `seconds` in which
    the device waits for micro-batches.
    """

    name: ClassVar[str] = "step"
    loss: float
    target_tokens: int
    tokens: int
    grad_norm: float
    lr: float
    seconds: float
    peak_bytes: int | None
    micro_batches: int
    epoch: float
    data_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Evaluating(Event):
    """Progress of an evaluation: `share` (0 to 1) is done. Sent to reporters, never written to events.jsonl."""

    name: ClassVar[str] = "evaluating"
    rows: int
    share: float


@dataclass(frozen=True, kw_only=True)
class EvalDone(Event):
    """An evaluation is done: mean `loss` (nats) over the validation set's `target_tokens`; `best`: lowest so far."""

    name: ClassVar[str] = "eval"
    loss: float
    target_tokens: int
    seconds: float
    best: bool


@dataclass(frozen=True, kw_only=True)
class Saved(Event):
    """A checkpoint is complete on the disk. `path` is relative to the run's folder."""

    name: ClassVar[str] = "saved"
    path: str
    bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """A warning that needs no immediate action."""

    name: ClassVar[str] = "warned"
    text: str


@dataclass(frozen=True, kw_only=True)
class Paused(Event):
    """The training waits, by the user's order or on a battery; everything up to `step` is saved. `text` gives the reason."""

    name: ClassVar[str] = "paused"
    text: str


@dataclass(frozen=True, kw_only=True)
class Continued(Event):
    """The training goes on after a pause; `text` gives the reason."""

    name: ClassVar[str] = "continued"
    text: str


@dataclass(frozen=True, kw_only=True)
class Moved(Event):
    """The run's folder was moved while the training runs; it is now `run`."""

    name: ClassVar[str] = "moved"
    run: str


@dataclass(frozen=True, kw_only=True)
class Resumed(Event):
    """Training continues after `step`; earlier events with a greater step, and an earlier `Finished`, are void."""

    name: ClassVar[str] = "resumed"
    checkpoint: str


@dataclass(frozen=True, kw_only=True)
class Shrunk(Event):
    """Training continues with smaller micro-batches or more recomputed layers; None: as planned.

    The event is sent again after a resume, so that a later resume finds it. `ran_out`: an allocation failed; else memory
    was only low.
    """

    name: ClassVar[str] = "shrunk"
    text: str
    token_budget: int | None
    recompute: int | None
    ran_out: bool = True


@dataclass(frozen=True, kw_only=True)
class Restarted(Event):
    """The training process died of `cause`. A new one continues after `step` and repeats `lost_steps` steps."""

    name: ClassVar[str] = "restarted"
    text: str
    cause: str
    lost_steps: int


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """A signal ended the run early; everything up to `step` is saved."""

    name: ClassVar[str] = "stopped"
    signal: int


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """An error ended the run; `text` is the message that the user gets."""

    name: ClassVar[str] = "failed"
    text: str


@dataclass(frozen=True, kw_only=True)
class AdapterChecked(Event):
    """Whether the installed peft loads the adapter in final_model/; `text` says it to the user.

    `peft` is its version, and `loaded` of `tensors` are the tensors of the adapter that it loads; all are None if this was
    not checked.
    """

    name: ClassVar[str] = "adapter_checked"
    text: str
    peft: str | None = None
    loaded: int | None = None
    tensors: int | None = None


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """All steps are done and final_model/ is complete. Losses are means over the validation set, None without one.

    `seconds` is the time in steps. `predicted_seconds` and `predicted_peak_bytes` come from the plan, None without a
    prediction.
    """

    name: ClassVar[str] = "finished"
    seconds: float
    valid_loss_before: float | None
    valid_loss_after: float | None
    best_step: int | None
    best_loss: float | None
    path: str
    data_seconds: float = 0.0
    predicted_seconds: float | None = None
    peak_bytes: int | None = None
    predicted_peak_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Answered(Event):
    """A `question` from the validation set, answered by the base model and by the fine-tuned model (`tuned`)."""

    name: ClassVar[str] = "answered"
    question: str
    base: str
    tuned: str


EVENTS: dict[str, type[Event]] = {kind.name: kind for kind in Event.__subclasses__()}


def to_line(event: Event) -> str:
    """Return `event` as one line of JSON; nan and inf, which JSON lacks, become null."""
    facts = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(event).items()}
    return json.dumps({"event": event.name, **facts}, ensure_ascii=False)


def from_line(line: str) -> Event | None:
    """Return the event in `line`, or None for an unknown kind of event. Raise ValueError for an incomplete line."""
    facts: dict[str, Any] = json.loads(line)
    kind = EVENTS.get(facts.pop("event", ""))
    if kind is None:
        return None
    known = {f.name for f in fields(kind)}
    return kind(**{k: v for k, v in facts.items() if k in known})


def read_events(path: Path) -> list[Event]:
    """Return all valid events: without incomplete lines, and without events of steps that a resume repeats."""
    events: list[Event] = []
    for event in _lines(path):
        if isinstance(event, Resumed):
            events = [e for e in events if e.step <= event.step and not isinstance(e, Finished)]
        events.append(event)
    return events


def _lines(path: Path) -> Iterator[Event]:
    if not path.is_file():
        return
    for line in path.read_text("utf-8", errors="replace").split("\n"):  # splitlines() also splits inside a text
        try:
            event = from_line(line)
        except (ValueError, TypeError, AttributeError, RecursionError):
            continue
        if event is not None:
            yield event


class EventLog:
    """Writer that appends events to a run's events.jsonl. It first terminates an incomplete line left by a crash."""

    def __init__(self, path: Path) -> None:
        self._torn = path.is_file() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
        # Unbuffered: after a full disk, close() would write the buffer again, and fail again.
        self._file = path.open("ab", buffering=0)

    def write(self, event: Event) -> None:
        """Append `event` and pass it to the operating system at once. Raise OSError if the line is incomplete."""
        line = (b"\n" if self._torn else b"") + to_line(event).encode(errors="backslashreplace") + b"\n"
        written = self._file.write(line)
        self._torn = written != len(line)
        if self._torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()
