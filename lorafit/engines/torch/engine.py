"""The PyTorch engine: the Engine protocol (engines/base.py) over transformers' models, padding-free."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from lorafit.data.micro_batch import MicroBatch
from lorafit.engines.base import (
    DEFAULT_CHUNK,
    EngineFacts,
    LossSum,
    Probe,
    Setup,
    StepResult,
    diverged_error,
    planned_adapter,
)
from lorafit.engines.torch import self_check
from lorafit.engines.torch.attention import SEGMENT_ATTENTION, VARLEN_ATTENTION, plain_attention, supports_varlen
from lorafit.engines.torch.device import DTYPES, arithmetic_dtype, get_device, translated
from lorafit.engines.torch.fsdp import ShardedPath, is_sharded, load_sharded
from lorafit.engines.torch.generate import generate_batches, stream_tokens
from lorafit.engines.torch.hf_path import GenericPath
from lorafit.engines.torch.lora import DropoutKeys, LoRALinear
from lorafit.engines.torch.loss import head_of
from lorafit.engines.torch.loss_scale import LossScale
from lorafit.engines.torch.model import (
    ActivationCheckpointing,
    add_lora,
    compile_layers,
    decoder_layers,
    find_targets,
    load_base,
    remove_lora,
    short,
    without_gradient,
)
from lorafit.engines.torch.model_class import base_facts
from lorafit.engines.torch.optimizer import TorchOptimizer
from lorafit.engines.torch.packed.decoder import PackedDecoder, why_unsupported
from lorafit.messages import _, labelled, listed
from lorafit.planner.fast_path import generic_reason
from lorafit.planner.plan import Plan
from lorafit.run_folders.adapter import (
    AdapterConfig,
    lora_names,
    modules_of,
    read_adapter,
    write_adapter,
)
from lorafit.run_folders.adapter_fit import read_matching_adapter, wrong_base_error
from lorafit.run_folders.foreign_adapter import unsupported_error
from lorafit.run_folders.peft_form import BaseFacts
from lorafit.sampling import Sampling


class TorchEngine:
    """One base model on one device, with at most one adapter."""

    @classmethod
    def open(cls, setup: Setup) -> "TorchEngine":
        """Load the base; with a plan, attach a fresh adapter and check both. Raise a LorafitError on failure."""
        engine = cls(setup)
        if setup.plan is not None:
            engine._start_training(setup.plan)
            engine.release()  # memory that loading and checks used
        return engine

    def __init__(self, setup: Setup) -> None:
        self.setup, self.device = setup, get_device(setup.device)
        with translated(self.device):
            if setup.device != "cpu":
                self_check.self_test(setup.device, DTYPES[setup.precision])
            began = time.monotonic()
            self.model, shards = load_sharded(setup) if is_sharded(setup) else (load_base(setup), None)
            self.load_seconds, self.load_peak_bytes = time.monotonic() - began, self.peak_bytes()
        self.head = head_of(self.model)
        self.recompute = ActivationCheckpointing(decoder_layers(self.model)[1])
        self.dropout = DropoutKeys(0.0, device=setup.device)
        self.layers: dict[str, LoRALinear] = {}
        self.adapter: AdapterConfig | None = None
        self.generic = GenericPath(self.model, self.head, self.dropout, DEFAULT_CHUNK)
        if shards is not None:
            self.generic = ShardedPath(self.generic, setup, shards)
        self.packed: PackedDecoder | None = None
        self.facts = EngineFacts(0, [], True)
        self.scale = LossScale(enabled=setup.precision == "fp16")
        self._optimizer: TorchOptimizer | None = None

    @property
    def plan(self) -> Plan:
        """The plan of the training. Only an engine that was opened with one has it."""
        assert self.setup.plan is not None
        return self.setup.plan

    @property
    def optimizer(self) -> TorchOptimizer:
        """The optimizer of the training. Only an engine that was opened with a plan has it."""
        assert self._optimizer is not None
        return self._optimizer

    # --- the adapter

    def _start_training(self, plan: Plan) -> None:
        self.generic.chunk = plan.loss_chunk
        self.dropout.p, self.dropout.seed = plan.lora_dropout, plan.seed
        self._attach(planned_adapter(self.setup, plan, find_targets(self.model, plan.lora_targets)))
        for layer in self.layers.values():
            layer.reset(plan.seed)
        self.set_recompute(plan.recompute)
        with translated(self.device):
            notes = self._check_packing()
            # After the checks, which need as much memory as the optimizer state.
            self._optimizer = TorchOptimizer(self._parameters(), plan, self.device)
        if self.packed is not None and not self.packed.shares_prefixes:
            notes.append(_("With dropout, a prefix shared by several samples is computed once per sample (slower)."))
        if plan.compile == "on" and self.packed is None:
            compile_layers(self.model)
        count = sum(p.numel() for p in self._parameters().values())
        shares = self.packed is not None and self.packed.shares_prefixes and self.packed.window is None
        self.facts = EngineFacts(
            count, list(self.layers), self.generic.packs, notes, shares, self.load_seconds, self.load_peak_bytes
        )

    def _attach(self, config: AdapterConfig) -> None:
        self.adapter = config
        self.layers = add_lora(self.model, config, self.dropout)

    def _parameters(self) -> dict[str, nn.Parameter]:
        """Return all trainable parameters by their names in PEFT's files."""
        named: dict[str, nn.Parameter] = {}
        for module, layer in self.layers.items():
            named |= dict(zip(lora_names(module), (layer.lora_A, layer.lora_B), strict=True))
        return named

    def _check_packing(self) -> list[str]:
        """Choose the path by comparing results; return notes for the user.

        A packed pass must equal single passes, else samples are computed one by one. The fast path must equal the
        generic path.
        """
        with self._without_dropout_and_nonzero_b(), self.generic.ready():
            parameters = list(self._parameters().values())
            tolerance = self_check.TOLERANCE[arithmetic_dtype(self.setup)]
            notes = self._try_varlen_attention(parameters, tolerance)
            check = self_check.check_packing(self.model, self.head, parameters, self.setup.device)
            notes += self._leave_out(check.unreached)
            self.generic.packs = check.error <= tolerance
            if self.generic.packs:
                return [self._take_fast_path(), *notes]
            self_check.refuse_unknown_head(self.model, self.head, self.setup, tolerance)
        self.model.set_attn_implementation(plain_attention(self.model))
        return [*notes, check.refusal]

    def _leave_out(self, unreached: list[int]) -> list[str]:
        """Remove the adapters of which both parameters are at the places `unreached`; return a note that names them."""
        names = without_gradient(self.layers, unreached)
        if not names:
            return []
        remove_lora(self.model, {name: self.layers.pop(name) for name in names})
        assert self.adapter is not None
        self.adapter = replace(self.adapter, target_modules=list(self.layers))
        kinds = listed(sorted({short(name) for name in names}))
        return [_("No adapter on {count} layers that get no gradient: {kinds}.").format(count=len(names), kinds=kinds)]

    def _try_varlen_attention(self, parameters: list[nn.Parameter], tolerance: float) -> list[str]:
        """Use one attention kernel for all samples if it computes the same; return a note, or none if unavailable."""
        dtype, able = arithmetic_dtype(self.setup), getattr(self.model, "_supports_attention_backend", False)
        if not (able and supports_varlen(self.device, dtype)):
            return []
        self.model.set_attn_implementation(VARLEN_ATTENTION)
        try:
            off = self_check.worst(
                self_check.varlen_attention_error(self.model, dtype, self.setup.device),
                *self_check.packing_error(self.model, self.head, parameters, self.setup.device),
            )
            if off <= tolerance:
                return [_("✓ Attention: one flash kernel for all samples of a micro-batch")]
            why = _("relative error {off:.1%}").format(off=off)
        except Exception as error:  # attention per segment is the fallback; its errors are not caught
            why = f"{type(error).__name__}: {error}".splitlines()[0]
        self.model.set_attn_implementation(SEGMENT_ATTENTION)
        text = _(
            "Attention: computed sample by sample, because the kernel for whole micro-batches does not work here ({why})"
        )
        return [text.format(why=why)]

    @contextmanager
    def _without_dropout_and_nonzero_b(self) -> Iterator[None]:
        """Inside, turn dropout off and make B nonzero, so that every gradient counts; afterwards reset B to zero."""
        dropout, self.dropout.p = self.dropout.p, 0.0
        with torch.no_grad():
            for layer in self.layers.values():
                layer.lora_B.fill_(0.01)
        try:
            yield
        finally:
            self.dropout.p = dropout
            with torch.no_grad():
                for layer in self.layers.values():
                    layer.lora_B.zero_()

    def _take_fast_path(self) -> str:
        """Use the packed decoder if it equals the generic path; return a note with the path and the reason."""
        decoder = self.model.get_decoder()
        if reason := why_unsupported(decoder, self.head, self.plan, self.device):
            return _("✓ Generic path of transformers: {reason}").format(reason=reason)
        micro = self_check.tiny_micro_batch(self.model)
        wanted_loss, wanted = self._loss_and_gradients(micro)
        self.packed = PackedDecoder(decoder, self.head, self.plan.loss_chunk, self.recompute, self.dropout)
        if not self.packed.supports([micro]):
            self.packed = None
            return _("✓ Generic path of transformers: {reason}").format(reason=generic_reason("window"))
        loss, found = self._loss_and_gradients(micro)
        off = self_check.worst(abs(loss - wanted_loss) / wanted_loss, self_check.difference_of_all(found, wanted))
        if off <= self_check.TOLERANCE[torch.float32]:
            return _("✓ Fast path: lorafit's padding-free decoder (matches transformers within {off:.0e})").format(
                off=off
            )
        self.packed = None
        return _("✓ Generic path of transformers: {reason}").format(
            reason=_("the fast path gives different results for this model (relative error {off:.1%})").format(off=off)
        )

    def _loss_and_gradients(self, micro: MicroBatch) -> tuple[float, list[Tensor]]:
        """Return the loss of `micro` and all gradients; leave no gradients with the parameters.

        The gradients are valid until the next pass, which may reuse their memory.
        """
        loss = self._accumulate(0, [micro], micro.num_targets)
        parameters = self._parameters().values()
        grads = [_gradient(parameter) for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        return loss, grads

    # --- training

    def step(self, step: int, micro_batches: Sequence[MicroBatch], total_targets: int, lr: float) -> StepResult:
        """Make one update (see engines/base.py). An fp16 overflow halves the loss scale and repeats the same step."""
        try:
            with translated(self.device):
                loss_sum, norm = self._gradients_of_step(step, micro_batches, total_targets)
                while not math.isfinite(norm) and self.scale.shrink():
                    self.optimizer.drop_gradients()
                    loss_sum, norm = self._gradients_of_step(step, micro_batches, total_targets)
                if not math.isfinite(norm):
                    raise diverged_error(step, norm)
                self._clip(norm)
                self.optimizer.update(lr)
                self.scale.grow()
        finally:
            self.optimizer.drop_gradients()
        return StepResult(loss_sum, norm, self.peak_bytes())

    def _gradients_of_step(
        self, step: int, micro_batches: Sequence[MicroBatch], total_targets: int
    ) -> tuple[float, float]:
        """Compute the gradients of the whole step into .grad; return its loss sum and the unscaled gradient norm."""
        ranks = self.setup.ranks
        with ranks.sync_oom(), translated(self.device):
            loss_sum = self._accumulate(step, micro_batches, total_targets)
            gradients = [_gradient(parameter) for parameter in self._parameters().values()]
        ranks.all_reduce_(gradients)
        norm = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
        return ranks.all_reduce_sum(loss_sum), norm / self.scale.value

    def _choose_path(self, micro_batches: Sequence[MicroBatch]) -> PackedDecoder | GenericPath:
        return self.packed if self.packed and self.packed.supports(micro_batches) else self.generic

    def _accumulate(self, step: int, micro_batches: Sequence[MicroBatch], total_targets: int) -> float:
        """Compute the gradients of all micro-batches into .grad; return the sum of their losses."""
        return _sum(self._choose_path(micro_batches).accumulate(step, micro_batches, self.scale.value / total_targets))

    def _clip(self, norm: float) -> None:
        limit = self.plan.max_grad_norm
        factor = min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0
        factor /= self.scale.value
        if factor != 1.0:
            for parameter in self._parameters().values():
                assert parameter.grad is not None
                parameter.grad.mul_(factor)

    def probe(self, micro_batch: MicroBatch) -> Probe:
        """Measure time and peak memory of a forward and backward pass of `micro_batch`; drop the gradients."""
        began = time.monotonic()
        with translated(self.device):
            try:
                self._accumulate(0, [micro_batch], max(micro_batch.num_targets, 1))
            finally:
                self.optimizer.drop_gradients()
        return Probe(time.monotonic() - began, self.peak_bytes())

    def set_recompute(self, layers: int) -> None:
        """Let the first `layers` layers recompute their activations in the backward pass."""
        self.recompute.count = layers

    def release(self) -> None:
        """Return the device's cached memory to the system."""
        self.device.empty_cache()

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> LossSum:
        """Return the loss without gradients, over the micro-batches of all ranks."""
        ranks, num_targets = self.setup.ranks, sum(micro.num_targets for micro in micro_batches)
        with ranks.sync_oom(), translated(self.device), torch.no_grad():
            losses = self._choose_path(micro_batches).evaluate(micro_batches)
        return LossSum(ranks.all_reduce_sum(_sum(losses)), int(ranks.all_reduce_sum(num_targets)))

    # --- disk

    def save(self, folder: Path) -> None:
        """Write the adapter, the optimizer state and the loss scale to `folder`."""
        self.save_adapter(folder)
        self.optimizer.save(folder)
        self.scale.save(folder)

    def load(self, folder: Path) -> None:
        """Read adapter, optimizer state and loss scale from `folder`. Raise AdapterError if they do not fit."""
        self._copy_weights(folder)
        self.optimizer.load(folder)
        self.scale.load(folder)

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter alone, in PEFT's layout."""
        assert self.adapter is not None
        tensors = {name: p.detach().cpu().numpy() for name, p in self._parameters().items()}
        write_adapter(folder, self.adapter, tensors, self._base_facts)

    @cached_property
    def _base_facts(self) -> BaseFacts:
        return base_facts(self.model)

    def _linear_names(self) -> list[str]:
        named = self.model.named_modules()
        return [n for n, m in named if isinstance(m, nn.Linear | LoRALinear) and not n.endswith(".base")]

    def load_adapter(self, folder: Path) -> None:
        """Load the adapter in `folder`; attach LoRA layers if there are none. Raise AdapterError if it does not fit."""
        if not self.layers:
            config, tensors = read_adapter(folder)
            modules, known = modules_of(tensors), set(self._linear_names())
            if missing := [m for m in modules if m not in known]:
                self._refuse_other_kinds(folder, missing)
                raise wrong_base_error(folder, config.base_model, missing[0])
            self._attach(replace(config, target_modules=modules))
            self.facts = EngineFacts(sum(p.numel() for p in self._parameters().values()), modules, self.generic.packs)
        self._copy_weights(folder)

    def _refuse_other_kinds(self, folder: Path, names: list[str]) -> None:
        """Raise AdapterError if the model has modules called `names` that are no linear layers."""
        named = dict(self.model.named_modules())
        if kinds := {type(named[name]).__name__ for name in names if name in named}:
            found = labelled(_("LoRA on layers that are not linear"), listed(sorted(kinds)))
            raise unsupported_error(folder, found)

    def _copy_weights(self, folder: Path) -> None:
        parameters = self._parameters()
        tensors = read_matching_adapter(folder, {name: tuple(p.shape) for name, p in parameters.items()})
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(torch.from_numpy(tensors[name]))

    # --- generation

    def set_adapter(self, on: bool) -> None:
        """Turn the adapter on or off, for generation and evaluation."""
        for layer in self.layers.values():
            layer.delta_enabled = on

    def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """Yield token ids that continue `prompt_ids`, up to and without a stop id."""
        return stream_tokens(self.model, self.device, prompt_ids, sampling)

    def answers(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[dict[int, list[int]]]:
        """Yield whole answers by the index of their prompt, in batches where the model allows it."""
        return generate_batches(self.model, self.device, prompts, sampling)

    def peak_bytes(self) -> int | None:
        """Return the peak memory of process or device; None where torch cannot tell."""
        return self.device.peak_bytes()


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Return the gradient of `parameter`: zeros if it took no part in the step."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _sum(losses: list[Tensor]) -> float:
    """Return the sum in float64, which Python has and MPS lacks; wait for the device once."""
    return math.fsum(torch.stack(losses).tolist()) if losses else 0.0
