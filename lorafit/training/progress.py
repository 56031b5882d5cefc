"""How do jobs that say what they are at become events? A generator's texts, or what is told to a function in a thread."""

from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import TypeVar

from lorafit.events import Event, Stage
from lorafit.models.download import in_thread
from lorafit.progress import Say

Result = TypeVar("Result")


def as_stage_events(texts: Generator[str, None, Result]) -> Generator[Event, None, Result]:
    """What `texts` returns; what it yields until then, as events."""
    while True:
        try:
            yield Stage(text=next(texts))
        except StopIteration as done:
            result: Result = done.value
            return result


def stage_texts(job: Callable[[Say], Result]) -> Generator[Event, None, Result]:
    """What job(say) returns or raises; what it says until then, as events. It runs in a thread of its own."""
    texts: SimpleQueue[str | None] = SimpleQueue()
    result = in_thread(lambda: job(texts.put))
    result.add_done_callback(lambda _result: texts.put(None))
    while (text := texts.get()) is not None:
        yield Stage(text=text)
    return result.result()
