"""The Engine protocol: the only interface between the training loop and the tensor libraries."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lorafit.data.micro_batch import MicroBatch
from lorafit.distributed.collectives import SINGLE_PROCESS, Collectives
from lorafit.errors import EngineError, ModelError
from lorafit.messages import _, listed
from lorafit.planner.plan import Plan
from lorafit.run_folders.adapter import AdapterConfig
from lorafit.sampling import Sampling

DEFAULT_CHUNK = 128  # targets whose logits an engine without a plan computes at once


class OutOfMemory(EngineError):
    """The device is out of memory; the engine's state is that before the call."""


@dataclass(frozen=True)
class Setup:
    """The arguments for opening an engine: the base model in `folder`, its device and precision.

    With `plan` the engine trains; without it, the engine only evaluates and generates.
    """

    folder: Path
    model_name: str  # the base model in the adapter's config: a model ID or the local folder
    device: str  # cuda | mps | cpu
    precision: str  # fp32 | bf16 | fp16
    quantization: str = "none"  # none | 4bit | 8bit
    trust_remote_code: bool = False
    plan: Plan | None = None
    ranks: Collectives = SINGLE_PROCESS  # the processes of this run; steps and evaluations are sums over all of them


@dataclass(frozen=True)
class StepResult:
    """The result of one optimizer update.

    `loss_sum` is the sum over all targets (nats), `grad_norm` the global norm before clipping; `peak_bytes` is None
    where the backend cannot measure it.
    """

    loss_sum: float
    grad_norm: float
    peak_bytes: int | None


@dataclass(frozen=True)
class LossSum:
    """Sum of losses (nats) over `num_targets` target tokens. The mean is computed only at the end, for display."""

    loss_sum: float
    num_targets: int

    @property
    def mean(self) -> float:
        """Loss per target token (nats)."""
        return self.loss_sum / max(self.num_targets, 1)


@dataclass(frozen=True)
class Probe:
    """The cost of one forward and backward pass."""

    seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class EngineFacts:
    """Facts that the engine finds when it opens, for the plan, the terminal and the adapter's README."""

    trainable_parameters: int
    target_modules: list[str]
    supports_packing: bool  # several samples share one forward pass
    notes: list[str] = field(default_factory=list)  # texts for the user
    shares_prefixes: bool = False  # a prefix that samples of a step share is computed once
    load_seconds: float | None = None  # time to load the base model
    load_peak_bytes: int | None = None  # peak memory of the process or device after loading
    longest_sample: int | None = None  # tokens of the longest sample that the backend computes as transformers does


class Engine(Protocol):
    """A base model with its adapter and optimizer. An engine translates every exception of its backend."""

    facts: EngineFacts

    def step(self, step: int, micro_batches: Sequence[MicroBatch], total_targets: int, lr: float) -> StepResult:
        """Run forward, backward, clipping and one update. Gradients are sums over target tokens / `total_targets`.

        With several ranks, each passes its own micro-batches, possibly none; the result covers the whole step.
        Raises OutOfMemory or EngineError. After OutOfMemory the state is that before the call: split the step into
        smaller micro-batches and call again.
        """
        ...

    def probe(self, micro_batch: MicroBatch) -> Probe:
        """Measure a forward and backward pass of `micro_batch`. Gradients are dropped and no state changes."""
        ...

    def set_recompute(self, layers: int) -> None:
        """Use gradient checkpointing in the first `layers` layers: recompute their activations in the backward pass."""
        ...

    def release(self) -> None:
        """Return memory that the backend keeps for reuse to the system. The next step takes a little longer."""
        ...

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> LossSum:
        """Return the loss over the micro-batches of all ranks, without gradients or dropout."""
        ...

    def save(self, folder: Path) -> None:
        """Write the adapter (PEFT's layout) and the optimizer state into the existing `folder`."""
        ...

    def load(self, folder: Path) -> None:
        """Restore the adapter and the optimizer state from `folder`. Raise AdapterError if they do not fit."""
        ...

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter alone (PEFT's layout)."""
        ...

    def load_adapter(self, folder: Path) -> None:
        """Load the adapter in `folder` onto the base model. Raise AdapterError if it does not fit."""
        ...

    def set_adapter(self, on: bool) -> None:
        """Switch the adapter on or off for generation and evaluation."""
        ...

    def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """Yield token IDs that continue `prompt_ids`, until a stop ID (not yielded) or `sampling.new_tokens`."""
        ...

    def answers(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[dict[int, list[int]]]:
        """Yield complete answers as they finish, keyed by the index of their prompt.

        An engine computes several answers at a time where that is faster.
        """
        ...

    def peak_bytes(self) -> int | None:
        """Return the peak memory of the process or device since opening; None where the backend cannot measure it."""
        ...


def planned_adapter(setup: Setup, plan: Plan, modules: list[str]) -> AdapterConfig:
    """Return the config of the adapter that `plan` trains on `modules`."""
    return AdapterConfig(
        setup.model_name,
        plan.lora_r,
        plan.lora_alpha,
        plan.lora_dropout,
        modules,
        rank_pattern=plan.rank_pattern,
        alpha_pattern=plan.alpha_pattern,
    )


def not_finite_error(model: str, weights: Sequence[str], precision: str) -> ModelError:
    """Return the error for a base model whose outputs are not finite. `weights` names its weights that are not finite."""
    if weights:
        return ModelError(
            _("The weights of the model contain values that are not finite numbers (NaN or infinity)."),
            where=model,
            found=listed([*weights[:5], *(["..."] if weights[5:] else [])]),
            fix=_("Download the weight files again. If they are your own, save them from an earlier state."),
        )
    return ModelError(
        _("The outputs of the model are not finite numbers in {precision}.").format(precision=precision),
        where=model,
        fix=_("Use another precision, for example `--precision fp32`."),
    )


def diverged_error(step: int, norm: float) -> EngineError:
    """Return the error for a gradient of `step` whose norm is not finite."""
    return EngineError(
        _("The gradient of step {step} is not finite.").format(step=step),
        found=norm,
        fix=_("Start a new run with a lower --learning_rate, or check the data of this step."),
    )


def answers_one_by_one(
    engine: Engine, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> Iterator[dict[int, list[int]]]:  # fmt: skip
    """Implement `Engine.answers` for an engine that answers one prompt at a time."""
    return ({place: list(engine.generate(prompt, sampling))} for place, prompt in enumerate(prompts))
