"""What can a run say, and how is it written down? One frozen dataclass an event, one JSON object a line.

`events.jsonl` in the run's folder is the one record; the worker writes it and every face only reads it.
docs/events.md describes each event for people who read the file with other programs.
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
    """A fact that a run says. `time` is seconds since 1970 (UTC), `step` the last finished step, 0 before any."""

    name: ClassVar[str] = ""
    time: float = field(default_factory=time.time)
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class Stage(Event):
    """The run does something that takes a while: `text` says what, for a person."""

    name: ClassVar[str] = "stage"
    text: str


@dataclass(frozen=True, kw_only=True)
class Planned(Event):
    """What was found and chosen: one dict a line with `setting`, `value` and `reason`, in the user's language."""

    name: ClassVar[str] = "planned"
    choices: list[dict[str, str]]
    predicted_peak_bytes: int
    available_bytes: int


@dataclass(frozen=True, kw_only=True)
class Rehearsed(Event):
    """A few micro-batches were computed and dropped: what they took, and what the whole run is expected to take by that."""

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
    """The plan stands and training begins (again, after a resume)."""

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
    """One optimizer update: mean `loss` over `target_tokens`, `grad_norm` before clipping, `peak_bytes` of the process or device.

    Of its `seconds` the device waited `data_seconds` for micro-batches.
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
    """An evaluation goes on: `share` (0 to 1) of it is done. Told to a face that listens; never written down."""

    name: ClassVar[str] = "evaluating"
    rows: int
    share: float


@dataclass(frozen=True, kw_only=True)
class EvalDone(Event):
    """Mean `loss` over the validation set's `target_tokens`; `best` when no earlier one was lower."""

    name: ClassVar[str] = "eval"
    loss: float
    target_tokens: int
    seconds: float
    best: bool


@dataclass(frozen=True, kw_only=True)
class Saved(Event):
    """A checkpoint stands complete on the disk. `path` is relative to the run's folder."""

    name: ClassVar[str] = "saved"
    path: str
    bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """Something the user should know and need not act on at once."""

    name: ClassVar[str] = "warned"
    text: str


@dataclass(frozen=True, kw_only=True)
class Resumed(Event):
    """Training goes on after `step`; whatever was written above that step before is void."""

    name: ClassVar[str] = "resumed"
    checkpoint: str


@dataclass(frozen=True, kw_only=True)
class Shrunk(Event):
    """From here on less is computed at a time; None: as planned. Said again after a resume, so that it is kept.

    `ran_out`: memory did; else it was only short.
    """

    name: ClassVar[str] = "shrunk"
    text: str
    token_budget: int | None
    recompute: int | None
    ran_out: bool = True


@dataclass(frozen=True, kw_only=True)
class Restarted(Event):
    """The process that trains died of `cause` and a new one goes on from `step`; `lost_steps` are done again."""

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
    """An error ended the run; `text` is what the user was told."""

    name: ClassVar[str] = "failed"
    text: str


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """All steps are done and final_model/ stands. Losses are means over the validation set, None without one.

    `seconds` were spent in steps; what the plan had predicted stands beside, None where nothing was predicted.
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
    """A held-out `question`, answered by the base model and by the tuned one."""

    name: ClassVar[str] = "answered"
    question: str
    base: str
    tuned: str


EVENTS: dict[str, type[Event]] = {kind.name: kind for kind in Event.__subclasses__()}


def to_line(event: Event) -> str:
    """`event` as one line of JSON; numbers that JSON cannot hold (nan, inf) become null."""
    facts = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(event).items()}
    return json.dumps({"event": event.name, **facts}, ensure_ascii=False)


def from_line(line: str) -> Event | None:
    """The event in `line`, or None for one that this version does not know. Raises ValueError on a torn line."""
    facts: dict[str, Any] = json.loads(line)
    kind = EVENTS.get(facts.pop("event", ""))
    if kind is None:
        return None
    known = {f.name for f in fields(kind)}
    return kind(**{k: v for k, v in facts.items() if k in known})


def read_events(path: Path) -> list[Event]:
    """All events that hold: a torn last line is dropped, and after a resume whatever lay above its step."""
    events: list[Event] = []
    for event in _lines(path):
        if isinstance(event, Resumed):
            events = [e for e in events if e.step <= event.step and not isinstance(e, Finished)]
        events.append(event)
    return events


def _lines(path: Path) -> Iterator[Event]:
    if not path.is_file():
        return
    for line in path.read_text("utf-8", errors="replace").split("\n"):  # splitlines() also ends lines within a text
        try:
            event = from_line(line)
        except (ValueError, TypeError, AttributeError, RecursionError):
            continue
        if event is not None:
            yield event


class EventLog:
    """Appends events to a run's events.jsonl, each line whole: a torn line left by a crash is ended first."""

    def __init__(self, path: Path) -> None:
        self._torn = path.is_file() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
        # Unbuffered: a buffer that a full disk refused would be written, and refused, again at the end.
        self._file = path.open("ab", buffering=0)

    def write(self, event: Event) -> None:
        """Append `event` and hand it to the operating system at once. Raises OSError where the disk takes less than all."""
        line = (b"\n" if self._torn else b"") + to_line(event).encode(errors="backslashreplace") + b"\n"
        written = self._file.write(line)
        self._torn = written != len(line)
        if self._torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()
