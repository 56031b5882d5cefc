"""What must an engine be able to do? The one seam between the loop and the tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lorafit.data.micro_batch import MicroBatch
from lorafit.distributed.collectives import SINGLE_PROCESS, Collectives
from lorafit.errors import EngineError
from lorafit.planner.plan import Plan
from lorafit.sampling import Sampling


class OutOfMemory(EngineError):
    """The device's memory ran out; the engine's state is what it was before the call."""


@dataclass(frozen=True)
class Setup:
    """What an engine opens: a base model's `folder` in given numbers on a device, to train by `plan` or, without one, to answer."""

    folder: Path
    model_name: str  # what an adapter's config names as its base: a hub id, or the local folder
    device: str  # cuda | mps | cpu
    precision: str  # fp32 | bf16 | fp16
    quantization: str = "none"  # none | 4bit | 8bit
    trust_remote_code: bool = False
    plan: Plan | None = None
    ranks: Collectives = SINGLE_PROCESS  # who trains this run together; steps and evaluations are sums over all of them


@dataclass(frozen=True)
class StepResult:
    """One update: `loss_sum` over the micro-batches' targets (nats), global `grad_norm` before clipping."""

    loss_sum: float
    grad_norm: float
    peak_bytes: int | None


@dataclass(frozen=True)
class LossSum:
    """Sum of losses (nats) over `num_targets` target tokens. A mean is made at the end, for a person to read."""

    loss_sum: float
    num_targets: int

    @property
    def mean(self) -> float:
        return self.loss_sum / max(self.num_targets, 1)


@dataclass(frozen=True)
class Probe:
    """What one forward and backward cost."""

    seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Facts:
    """What the engine found when it opened: for the plan, the terminal and the adapter's README."""

    trainable_parameters: int
    target_modules: list[str]
    packs: bool  # several samples share one forward pass
    notes: list[str] = field(default_factory=list)  # words for the user
    shares: bool = False  # what samples of a step begin with alike is computed once
    load_seconds: float | None = None  # to have the base in memory
    load_peak_bytes: int | None = None  # the process's or device's peak by then


class Engine(Protocol):
    """The thing with tensors. Every backend exception is translated here, none passes."""

    facts: Facts

    def step(self, step: int, micro_batches: Sequence[MicroBatch], total_targets: int, lr: float) -> StepResult:
        """Forward, backward, clip, update: once. Gradients are sums over target tokens / `total_targets`.

        Of several ranks each gives its own micro-batches, perhaps none; the result is that of the whole step.
        Raises OutOfMemory (state as before the call; split the step anew and call again) or EngineError.
        """
        ...

    def probe(self, micro_batch: MicroBatch) -> Probe:
        """Forward and backward of `micro_batch`; gradients dropped, no state touched."""
        ...

    def set_recompute(self, layers: int) -> None:
        """Let the first `layers` layers recompute their activations in the backward pass."""
        ...

    def release(self) -> None:
        """Give the system back what the backend keeps for the next step; that one takes a little longer."""
        ...

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> LossSum:
        """Loss without gradients or dropout, over the micro-batches of all ranks."""
        ...

    def save(self, folder: Path) -> None:
        """Write the adapter (PEFT's layout) and the optimizer's moments into the existing `folder`."""
        ...

    def load(self, folder: Path) -> None:
        """Take adapter and moments back from `folder`. Raises AdapterError when they do not fit."""
        ...

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter alone (PEFT's layout)."""
        ...

    def load_adapter(self, folder: Path) -> None:
        """Put the adapter in `folder` on the base. Raises AdapterError when it does not fit."""
        ...

    def set_adapter(self, on: bool) -> None:
        """Answer and evaluate with the adapter, or as the base alone."""
        ...

    def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """Token ids that continue `prompt_ids`, up to and without a stop id."""
        ...

    def answers(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[dict[int, list[int]]]:
        """Whole answers by their prompts' places, as they are done: several at a time where that is faster."""
        ...

    def peak_bytes(self) -> int | None:
        """Peak memory of process or device since it opened; None where the backend cannot tell."""
        ...


def one_by_one(
    engine: Engine, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> Iterator[dict[int, list[int]]]:  # fmt: skip
    """Engine.answers for an engine that answers one prompt at a time."""
    return ({place: list(engine.generate(prompt, sampling))} for place, prompt in enumerate(prompts))
