"""The MLX engine: the Engine protocol (engines/base.py) for models that mlx_lm loads, padding-free.

Training changes only two dicts: `params` and the optimizer's moments. A step computes new dicts and replaces the old
ones at its end, so an earlier failure leaves the engine unchanged. Letters: T tokens, N targets, H hidden.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from lorafit import hashing
from lorafit.data.micro_batch import MicroBatch
from lorafit.engines.base import (
    DEFAULT_CHUNK,
    EngineFacts,
    LossSum,
    OutOfMemory,
    Probe,
    Setup,
    StepResult,
    answers_one_by_one,
    diverged_error,
    planned_adapter,
)
from lorafit.engines.mlx import blas, device, self_check
from lorafit.engines.mlx.decoder import DecoderInput, MLXDecoder, layer_facts
from lorafit.engines.mlx.generic import GenericDecoder
from lorafit.engines.mlx.load import LoadedBase, load_base
from lorafit.engines.mlx.lora import MLXLoRADelta, Params, initial_lora_a
from lorafit.engines.mlx.loss import evaluation_loss, target_loss
from lorafit.engines.mlx.optimizer import MLXOptimizer
from lorafit.errors import ModelError
from lorafit.messages import _, listed
from lorafit.models.lora_targets import place_in_layers, select_targets
from lorafit.models.spec import ModelSpec, read_shape
from lorafit.models.weight_files import read_headers, weight_files
from lorafit.planner.plan import Plan
from lorafit.run_folders.adapter import (
    AdapterConfig,
    lora_names,
    modules_of,
    read_adapter,
    write_adapter,
)
from lorafit.run_folders.adapter_fit import read_matching_adapter, wrong_base_error
from lorafit.run_folders.peft_form import BaseFacts
from lorafit.sampling import Sampling, sample_token
from lorafit.units import bytes_text


class MLXEngine:
    """One base model on one device, with at most one adapter. The Engine protocol documents the methods."""

    @classmethod
    def open(cls, setup: Setup) -> "MLXEngine":
        """Load and check the base model; with a plan, add a new adapter. Raise a LorafitError on failure."""
        engine = cls(setup)
        if setup.plan is not None:
            engine._start_training(setup.plan)
        return engine

    def __init__(self, setup: Setup) -> None:
        self.setup, self.delta = setup, MLXLoRADelta()
        began = time.monotonic()
        device.use_device(setup.device, setup.precision)
        mx.reset_peak_memory()
        if setup.plan is not None:
            device.limit_memory(setup.plan.available_bytes)
        with device.translated():
            base = load_base(setup)
            self.packs, notes = True, _first_notes(base)
            self.longest_sample: int | None = None
            try:
                self.body = self._body(base, notes)
            except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # of mlx_lm's model code
                what = _("lorafit cannot train this model type with MLX.")
                found = f"{base.config.model_type}: {type(error).__name__}: {error}"
                raise ModelError(what, where=setup.folder, found=found, fix=_("Try --engine torch.")) from error
            mx.eval(base.model.parameters())
        self.params: Params = {}
        self.adapter: AdapterConfig | None = None
        self.chunk, self.seed = DEFAULT_CHUNK, 0
        self._optimizer: MLXOptimizer | None = None
        self.facts = EngineFacts(
            0,
            [],
            self.packs,
            notes,
            longest_sample=self.longest_sample,
            load_seconds=time.monotonic() - began,
            load_peak_bytes=self.peak_bytes(),
        )

    @property
    def plan(self) -> Plan:
        """The plan of the training. Only an engine that was opened with one has it."""
        assert self.setup.plan is not None
        return self.setup.plan

    @property
    def optimizer(self) -> MLXOptimizer:
        """The optimizer of the training. Only an engine that was opened with a plan has it."""
        assert self._optimizer is not None
        return self._optimizer

    def _body(self, base: LoadedBase, notes: list[str]) -> MLXDecoder | GenericDecoder:
        """Return `MLXDecoder` if its logits equal mlx_lm's, else `GenericDecoder`; add the choice to `notes`."""
        tolerance, off = self_check.TOLERANCE[self.setup.precision], math.inf
        if layer_facts(base.model.model.layers, base.prefix, base.config) is not None:
            ours = MLXDecoder(base.model, base.prefix, base.config, self.delta)
            off = self_check.packing_error(ours, base, {})
            if off <= tolerance:
                notes.append(
                    _("✓ Fast path: lorafit's padding-free decoder (matches mlx_lm within {off:.0e})").format(off=off)
                )
                return ours
        generic = GenericDecoder(base.model, base.prefix, base.config, self.delta)
        reason = _("this model architecture has no fast path")
        if math.isfinite(off):
            reason = _("the fast path gives different results for this model (relative error {off:.1%})").format(
                off=off
            )
        notes.append(_("✓ Generic path of mlx_lm: {reason}").format(reason=reason))
        self._check_generic(generic, base, tolerance, notes)
        return generic

    def _check_generic(self, body: GenericDecoder, base: LoadedBase, tolerance: float, notes: list[str]) -> None:
        """Turn packing off if packed samples do not give mlx_lm's own logits.

        Raise ModelError if a single sample does not give them either.
        """
        self.longest_sample = self_check.ignored_boundary(base)
        if self_check.packing_error(body, base, {}, through_boundaries=True) <= tolerance:
            return
        self.packs = False
        notes.append(_("This model does not support packed samples: samples are computed one at a time."))
        alone = self_check.single_error(body, base, {})
        if not alone <= tolerance:
            self_check.check_finite(base, self.setup.model_name, self.setup.precision)
            what = _("lorafit cannot train this model type: its outputs are computed in a non-standard way.")
            found = _("{kind}: relative error {off:.1%}").format(kind=base.config.model_type, off=alone)
            raise ModelError(what, found=found, fix=_("Try --engine torch."))

    # --- the adapter

    def _start_training(self, plan: Plan) -> None:
        self.chunk, self.seed = plan.loss_chunk, plan.seed
        self.delta.dropout = plan.lora_dropout
        known, notes = _known_to_peft(list(self.body.modules), read_shape(self.setup.folder))
        names = select_targets(known, plan.lora_targets)
        self._attach(planned_adapter(self.setup, plan, names))
        for name in names:
            a, _b = lora_names(name)
            r, inputs = self.params[a].shape
            self.params[a] = mx.array(initial_lora_a(name, r, inputs, plan.seed))
        self._optimizer = MLXOptimizer(self.params, plan)
        self.set_recompute(plan.recompute)
        with device.translated():
            mx.eval(self.params, self.optimizer.moments)
        facts = replace(self.facts, trainable_parameters=self._count(), target_modules=names)
        self.facts = replace(facts, notes=[*facts.notes, *notes])

    def _attach(self, config: AdapterConfig) -> None:
        """Add an adapter of zeros on the modules that `config` names in full."""
        self.adapter = config
        for name in config.target_modules:
            (outputs, inputs), r = self._shape(name), config.rank_of(name)
            a, b = lora_names(name)
            self.params |= {a: mx.zeros((r, inputs)), b: mx.zeros((outputs, r))}
            self.delta.scales[name] = config.scale_of(name)

    def _shape(self, name: str) -> tuple[int, int]:
        """Return [out, in] of a linear layer. A quantized layer packs several numbers into 32 bits."""
        module = self.body.modules[name]
        outputs, inputs = module.weight.shape
        return outputs, inputs * 32 // module.bits if "scales" in module else inputs

    def _count(self) -> int:
        return sum(p.size for p in self.params.values())

    # --- training

    def step(self, step: int, micro_batches: Sequence[MicroBatch], total_targets: int, lr: float) -> StepResult:
        """Run one update (see engines/base.py)."""
        with device.translated():
            loss_sum, grads = self._accumulate(step, micro_batches)
            norm = _norm(grads) / total_targets
            if not math.isfinite(norm):
                raise diverged_error(step, norm)
            limit = self.plan.max_grad_norm
            factor = (min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0) / total_targets
            grads = {name: grad * factor for name, grad in grads.items()}
            params, moments = self.optimizer.compute_update(self.params, grads, lr)
            mx.eval(params, moments)
        self.params = params
        self.optimizer.commit(moments)
        return StepResult(loss_sum, norm, self.peak_bytes())

    def _accumulate(self, step: int, micro_batches: Sequence[MicroBatch]) -> tuple[float, Params]:
        """Return the sums of the losses and of the gradients of all micro-batches."""
        losses, total = [], {name: mx.zeros_like(p) for name, p in self.params.items()}
        for micro in micro_batches:
            for part in micro.parts(self.packs):
                loss, grads = self._loss_and_gradients(step, part)
                total = tree_map(mx.add, total, grads)
                del grads
                mx.eval(loss, total)
                losses.append(float(loss))
            self._watch_memory(micro)
        return math.fsum(losses), total

    def _loss_and_gradients(self, step: int, micro: MicroBatch) -> tuple[mx.array, Params]:
        rows = DecoderInput.of(micro)
        if self.delta.dropout > 0:
            places = np.repeat(micro.index_in_step, np.diff(micro.segments))
            self.delta.keys_T = mx.array(hashing.dropout_row_keys(self.seed, step, places, micro.position_ids))

        def loss_of(params: Params) -> mx.array:
            return target_loss(self.body.head, self.body.hidden(params, rows), rows.targets, self.chunk)

        try:
            loss, grads = mx.value_and_grad(loss_of)(self.params)
        finally:
            self.delta.keys_T = None
        return loss, grads

    def _watch_memory(self, micro: MicroBatch) -> None:
        """Raise OutOfMemory if MLX used more memory than is available.

        MLX enforces no hard limit, so the system would kill the process. A single sample passes: it cannot be split.
        """
        limit, taken = self.plan.available_bytes, mx.get_peak_memory()
        if 0 < limit < taken and len(micro.sample_ids) > 1:
            mx.reset_peak_memory()
            mx.clear_cache()
            found = _("{taken} used, the limit is {limit}").format(taken=bytes_text(taken), limit=bytes_text(limit))
            raise OutOfMemory(_("MLX used more memory than the limit."), found=found)

    def probe(self, micro_batch: MicroBatch) -> Probe:
        began = time.monotonic()
        with device.translated():
            for part in micro_batch.parts(self.packs):
                mx.eval(self._loss_and_gradients(0, part))
        return Probe(time.monotonic() - began, self.peak_bytes())

    def set_recompute(self, layers: int) -> None:
        self.body.recompute = layers

    def release(self) -> None:
        mx.clear_cache()

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> LossSum:
        losses, num_targets = [], 0
        with device.translated():
            for micro in (m for packed in micro_batches for m in packed.parts(self.packs)):
                rows = DecoderInput.of(micro)
                hidden_NH = self.body.hidden(self.params, rows)
                losses.append(float(evaluation_loss(self.body.head, hidden_NH, rows.targets, self.chunk)))
                num_targets += micro.num_targets
        return LossSum(math.fsum(losses), num_targets)

    # --- disk

    def save(self, folder: Path) -> None:
        self.save_adapter(folder)
        self.optimizer.save(folder)

    def load(self, folder: Path) -> None:
        self._copy_weights(folder)
        self.optimizer.load(folder)

    def save_adapter(self, folder: Path) -> None:
        assert self.adapter is not None
        tensors = {name: np.array(p) for name, p in self.params.items()}
        write_adapter(folder, self.adapter, tensors, self._base_facts)

    @cached_property
    def _base_facts(self) -> BaseFacts:
        """The modules of the base model, also those that only its files name: mlx_lm leaves vision towers out."""
        headers = [header for file in weight_files(self.setup.folder) for header in read_headers(file)]
        names = {*self.body.modules, *(header.name.rpartition(".")[0] for header in headers)}
        kind = json.loads((self.setup.folder / "config.json").read_text("utf-8"))["model_type"]
        return BaseFacts(kind, names, {})

    def load_adapter(self, folder: Path) -> None:
        if self.adapter is None:
            config, tensors = read_adapter(folder)
            modules = modules_of(tensors)
            if missing := [m for m in modules if m not in self.body.modules]:
                raise wrong_base_error(folder, config.base_model, missing[0])
            self._attach(replace(config, target_modules=modules))
            self.facts = replace(self.facts, trainable_parameters=self._count(), target_modules=modules)
        self._copy_weights(folder)

    def _copy_weights(self, folder: Path) -> None:
        tensors = read_matching_adapter(folder, {name: tuple(p.shape) for name, p in self.params.items()})
        self.params = {name: mx.array(tensors[name]) for name in self.params}

    # --- generation

    def set_adapter(self, on: bool) -> None:
        self.delta.on = on

    def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[int]:
        rng = np.random.default_rng(sampling.seed)
        cache, ids = self.body.new_cache(), list(prompt_ids)
        for _i in range(sampling.new_tokens(len(prompt_ids))):
            with device.translated():
                logits_V = np.array(self.body.next_logits(self.params, ids, cache))
                token = sample_token(logits_V, sampling, rng)
            if token in sampling.stop_ids:
                return
            yield token
            ids = [token]

    def answers(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[dict[int, list[int]]]:
        return answers_one_by_one(self, prompts, sampling)

    def peak_bytes(self) -> int | None:
        return int(mx.get_peak_memory()) or None


def _norm(grads: Params) -> float:
    """Return the global norm. Each row is summed first: on the CPU, one sum of many numbers is 1e-4 off."""
    return float(mx.sqrt(mx.stack([mx.square(grad).sum(axis=-1).sum() for grad in grads.values()]).sum()))


def _known_to_peft(modules: list[str], spec: ModelSpec) -> tuple[list[str], list[str]]:
    """Return the linear layers that transformers has too, and a note on its layers that mlx_lm computes otherwise.

    An adapter on another layer of mlx_lm fits no other program.
    """
    places = {place_in_layers(linear.name): linear.name for linear in spec.linears}
    known = [name for name in modules if place_in_layers(name) in places]
    lacking = places.keys() - {place_in_layers(name) for name in known}
    if not known:
        return modules, []
    kinds = sorted({places[place].rpartition(".")[2] for place in lacking})
    text = _("No adapter on {count} layers that mlx_lm computes in another form: {kinds}.")
    return known, [text.format(count=len(lacking), kinds=listed(kinds))] if lacking else []


def _first_notes(base: LoadedBase) -> list[str]:
    """Return notes on the base model and the machine: a slow BLAS, a base that is already quantized."""
    notes = [_slow_blas()] if blas.is_slow() else []
    if base.stored_bits is not None:
        text = _("✓ Base weights already quantized for MLX ({bits}-bit): used unchanged")
        notes.append(text.format(bits=base.stored_bits))
    return notes


def _slow_blas() -> str:
    text = _("⚠️  Matrix multiplication in MLX is about 40 times slower here, without OpenBLAS. Install it: {command}")
    return text.format(command=blas.INSTALL)
