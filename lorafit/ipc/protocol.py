"""Messages on the pipes between supervisor and worker: one JSON object per line, in both directions, never pickle.

The worker receives one `Start`, then orders. It sends events, beats, the run folder, and how it ended. Errors keep
their class and their texts; a bug is sent as its traceback.
"""

import json
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lorafit.config import TrainConfig
from lorafit.engines.base import OutOfMemory
from lorafit.errors import LorafitError
from lorafit.events import Event, from_line, to_line


@dataclass(frozen=True)
class Start:
    """The task of a worker: `config`, in `language`, for the supervisor with process ID `supervisor`."""

    config: TrainConfig
    language: str
    supervisor: int
    shrink: bool = False  # use smaller micro-batches than before from the first step on, or fail if that is impossible
    save_seconds: float | None = None  # seconds between checkpoints; --save_steps overrides it


@dataclass(frozen=True)
class Order:
    """An order to a running worker. `signal` belongs to "stop". "haste" asks to stop without finishing the step. `text` belongs to "say", "pause" and "go_on"."""

    name: str  # stop | haste | recycle | shrink | pause | go_on | say
    signal: int = 0
    text: str = ""


@dataclass(frozen=True)
class Beat:
    """The engine started another micro-batch."""


@dataclass(frozen=True)
class RunFolder:
    """The run folder that the worker writes from now on."""

    path: str


@dataclass(frozen=True)
class WorkerDone:
    """The worker completed its task: it finished, or it was stopped and saved."""


@dataclass(frozen=True)
class Bug:
    """An unexpected exception, as a traceback."""

    traceback: str


Message = Event | Beat | RunFolder | WorkerDone | Bug | LorafitError


def start_line(start: Start) -> str:
    """Return `start` as a line of JSON."""
    return json.dumps({**vars(start), "config": start.config.model_dump(exclude_unset=True)}, ensure_ascii=True)


def read_start(line: str) -> Start:
    """Return the Start that `start_line` wrote."""
    facts: dict[str, Any] = json.loads(line)
    return Start(**{**facts, "config": TrainConfig.model_validate(facts["config"])})


def order_line(order: Order) -> str:
    """Return `order` as a line of JSON."""
    return json.dumps(vars(order), ensure_ascii=True)


def read_order(line: str) -> Order:
    """Return the Order that `order_line` wrote."""
    return Order(**json.loads(line))


def message_line(message: Message) -> str:
    """Return `message` as a line of JSON; an event as in the run's event log."""
    if isinstance(message, Event):
        return to_line(message)
    if isinstance(message, LorafitError):
        words = {"what": message.what, "where": message.where, "found": message.found, "fix": message.fix}
        return json.dumps({"error": type(message).__name__, **words}, ensure_ascii=True)
    return json.dumps({"message": type(message).__name__, **vars(message)}, ensure_ascii=True)


def read_message(line: str) -> Message | None:
    """Return the worker's message; None for any other line, such as a library's output."""
    try:
        facts = json.loads(line)
        if "event" in facts:
            return from_line(line)
        if "error" in facts:
            kind = next((k for k in _kinds(LorafitError) if k.__name__ == facts["error"]), LorafitError)
            error = kind.__new__(kind)  # subclass constructors take other arguments
            LorafitError.__init__(error, facts["what"], where=facts["where"], found=facts["found"], fix=facts["fix"])
            return error
        kinds = {kind.__name__: kind for kind in (Beat, RunFolder, WorkerDone, Bug)}
        message: Message = kinds[facts.pop("message")](**facts)
        return message
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def to_bug(error: BaseException) -> Bug:
    """Return `error` as a Bug, with its traceback."""
    return Bug("".join(traceback.format_exception(error)))


def _kinds(kind: type[LorafitError]) -> Iterator[type[LorafitError]]:
    """Yield `kind` and all its loaded subclasses. This module imports OutOfMemory so that it is among them."""
    assert issubclass(OutOfMemory, LorafitError)
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)
