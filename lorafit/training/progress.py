"""Conversion of progress messages into Stage events: from a generator, or from a callback in a thread."""

from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import TypeVar

from lorafit.events import Event, Stage
from lorafit.models.download import in_thread
from lorafit.progress import ProgressCallback

Result = TypeVar("Result")


def as_stage_events(texts: Generator[str, None, Result]) -> Generator[Event, None, Result]:
    """Yield the texts of `texts` as Stage events, and return its return value."""
    while True:
        try:
            yield Stage(text=next(texts))
        except StopIteration as done:
            result: Result = done.value
            return result


def stage_texts(job: Callable[[ProgressCallback], Result]) -> Generator[Event, None, Result]:
    """Run job(say) in a thread, and yield the texts given to `say` as Stage events. Return or raise as the job does."""
    texts: SimpleQueue[str | None] = SimpleQueue()
    result = in_thread(lambda: job(texts.put))
    result.add_done_callback(lambda _result: texts.put(None))
    while (text := texts.get()) is not None:
        yield Stage(text=text)
    return result.result()
