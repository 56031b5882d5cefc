"""What goes over the pipes between supervisor and worker? One JSON object a line, each way, and never pickle.

To the worker: first the settings of a start, then orders. From it: events, beats of its pulse, the run's folder, and how
it ended. Errors keep their kind and their words; a bug is told by its traceback.
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
    """What a worker is to do: `config`, in `language`, for the supervisor with process id `supervisor`."""

    config: TrainConfig
    language: str
    supervisor: int
    shrink: bool = False  # take less memory than before from the first step on, or say that it cannot be
    save_seconds: float | None = None  # save as often as that, where no --save_steps says otherwise


@dataclass(frozen=True)
class Order:
    """A word to a living worker; `signal` goes with "stop", `text` with "say"."""

    name: str  # stop | recycle | shrink | pause | go_on | say
    signal: int = 0
    text: str = ""


@dataclass(frozen=True)
class Beat:
    """The engine took up another micro-batch."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of the run that the worker writes from now on."""

    path: str


@dataclass(frozen=True)
class WorkerDone:
    """The worker did what it was asked for: it is finished, or was stopped and has saved."""


@dataclass(frozen=True)
class Bug:
    """An exception that nobody foresaw, as a traceback."""

    traceback: str


Message = Event | Beat | RunFolder | WorkerDone | Bug | LorafitError


def start_line(start: Start) -> str:
    return json.dumps({**vars(start), "config": start.config.model_dump()}, ensure_ascii=True)


def read_start(line: str) -> Start:
    facts: dict[str, Any] = json.loads(line)
    return Start(**{**facts, "config": TrainConfig.model_validate(facts["config"])})


def order_line(order: Order) -> str:
    return json.dumps(vars(order), ensure_ascii=True)


def read_order(line: str) -> Order:
    return Order(**json.loads(line))


def message_line(message: Message) -> str:
    if isinstance(message, Event):
        return to_line(message)
    if isinstance(message, LorafitError):
        words = {"what": message.what, "where": message.where, "found": message.found, "fix": message.fix}
        return json.dumps({"error": type(message).__name__, **words}, ensure_ascii=True)
    return json.dumps({"message": type(message).__name__, **vars(message)}, ensure_ascii=True)


def read_message(line: str) -> Message | None:
    """What the worker said; None for a line that is none of ours, as libraries may write."""
    try:
        facts = json.loads(line)
        if "event" in facts:
            return from_line(line)
        if "error" in facts:
            kind = next((k for k in _kinds(LorafitError) if k.__name__ == facts["error"]), LorafitError)
            error = kind.__new__(kind)  # whatever arguments its own constructor takes
            LorafitError.__init__(error, facts["what"], where=facts["where"], found=facts["found"], fix=facts["fix"])
            return error
        kinds = {kind.__name__: kind for kind in (Beat, RunFolder, WorkerDone, Bug)}
        message: Message = kinds[facts.pop("message")](**facts)
        return message
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def bug_of(error: BaseException) -> Bug:
    return Bug("".join(traceback.format_exception(error)))


def _kinds(kind: type[LorafitError]) -> Iterator[type[LorafitError]]:
    """All kinds of error that a user can be told, OutOfMemory (imported for this) among them."""
    assert issubclass(OutOfMemory, LorafitError)
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)
