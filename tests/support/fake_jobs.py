"""Training jobs on the fake engine."""

from pathlib import Path
from typing import TypeVar

from lorafit.engines.base import Setup
from lorafit.engines.fake import FakeEngine
from lorafit.events import Event
from lorafit.ipc.link import Link
from lorafit.planner.plan import Plan
from lorafit.run_folders.directory import RunDir
from lorafit.training.loop import Job
from support import plans

SAMPLES = plans.make_samples(40)


def make_job(path: Path, plan: Plan, memory_tokens: int | None = None, link: Link | None = None) -> Job:
    """Return a job in the run folder `path`, with 32 training and 8 validation samples.

    A micro-batch of more than `memory_tokens` tokens raises OutOfMemory.
    """
    path.mkdir(exist_ok=True)
    engine = FakeEngine(Setup(path, "fake", "cpu", "fp32", plan=plan), memory_tokens)
    return Job(engine, SAMPLES[:32], SAMPLES[32:], RunDir(path), plan, lambda _folder: None, link or Link())


def adapter_bytes(folder: Path) -> bytes:
    """Return the bytes of the adapter's weights file in `folder`."""
    return (folder / "adapter_model.safetensors").read_bytes()


Kind = TypeVar("Kind", bound=Event)


def of(kind: type[Kind], events: list[Event]) -> list[Kind]:
    """Return the events of class `kind`."""
    return [event for event in events if isinstance(event, kind)]
