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
    path.mkdir(exist_ok=True)
    engine = FakeEngine(Setup(path, "fake", "cpu", "fp32", plan=plan), memory_tokens)
    return Job(engine, SAMPLES[:32], SAMPLES[32:], RunDir(path), plan, lambda _folder: None, link or Link())


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


Kind = TypeVar("Kind", bound=Event)


def of(kind: type[Kind], events: list[Event]) -> list[Kind]:
    return [event for event in events if isinstance(event, kind)]
