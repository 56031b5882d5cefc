"""The target `mlx`: a whole model in a folder that mlx_lm loads, in 4, 8 or 16 bits, measured in mlx_lm."""

import shutil
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from lorafit import registry
from lorafit.errors import ConfigError, ExportError, ModelError
from lorafit.exporters.adapted import adapted_names, adapted_tensors, deltas, dequantized_note, too_large_to_measure
from lorafit.exporters.base import ExportJob, ExportRequest, ExportSource
from lorafit.exporters.certificate import Certificate, Form
from lorafit.exporters.chat_files import require_chat, write_chat_files, write_config
from lorafit.exporters.facts import adapter_facts, base_facts
from lorafit.exporters.keep import require_known_gain, smallest
from lorafit.exporters.measure import Gate, Reference, measured, reference
from lorafit.exporters.mlx.adapter import MlxAdapter
from lorafit.exporters.mlx.runtime import GATES, TIE, open_model, require_same_tokens, runtime_name
from lorafit.exporters.mlx.weights import REPLACED, write_replaced, write_weights
from lorafit.exporters.products import require_same_deltas
from lorafit.exporters.rounding import TORCH
from lorafit.exporters.survival import require_survival
from lorafit.messages import _
from lorafit.models.weight_files import read_headers, weight_files
from lorafit.planner.mlx_types import has_type
from lorafit.progress import ProgressCallback
from lorafit.units import MIB

DEFAULT = 16
ALL_BITS = (4, 8, 16)
OTHER_BYTES = 64 * MIB  # tokenizer, settings and certificate
COMMANDS = ["mlx_lm.chat --model {folder}", "lorafit chat --base_model {folder}"]


@dataclass
class MlxExport:
    """A checked export: `names` are the tensors in the base's files by adapted layer, `sizes` the bytes by bits.

    `dtype` is the type of what is not quantized, as in safetensors. With `keep`, one of several `sizes` is chosen.
    """

    source: ExportSource
    names: dict[str, str]
    sizes: dict[int, int]
    dtype: str
    keep: float | None

    @property
    def needed_bytes(self) -> int:
        """The bytes of the largest form, of the other files, and of weights that are dequantized meanwhile."""
        headers = [h for file in weight_files(self.source.base.folder) for h in read_headers(file)]
        meanwhile = sum(4 * prod(h.shape) for h in headers) if self.source.quantization != "none" else 0
        return max(self.sizes.values()) + OTHER_BYTES + meanwhile

    def write(self, folder: Path, say: ProgressCallback) -> Certificate:
        """Write the model and measure it. Raises ExportError if the files do not compute what the adapter does."""
        source = self.source
        why = too_large_to_measure(source, "fp32")
        wanted = None if why else reference(source, "fp32", self._rounding(), say)
        if self.keep is not None:
            require_known_gain(wanted or why or "")
        job = _Folder(self, folder, wanted, say)
        write_replaced(adapted_tensors(source, self.names, say), folder / REPLACED, say)
        if self.keep is None:
            form = job.form(next(iter(self.sizes)))
        else:
            kinds = {_kind(bits): bits for bits in sorted(self.sizes)}
            form = smallest(kinds, self.keep, lambda kind: job.form(kinds[kind]), lambda _kind: job.clear())
        (folder / REPLACED).unlink(missing_ok=True)
        notes = [*dequantized_note(source), *job.notes, *([why] if why else [])]
        return Certificate("mlx", base_facts(source), adapter_facts(source), source.quantization, [form],
                           job.template, job.stops, notes, COMMANDS)  # fmt: skip

    def _rounding(self) -> str | None:
        """Return the type to which weights of the base are rounded, as torch names it; None: they keep their type."""
        headers = [h for file in weight_files(self.source.base.folder) for h in read_headers(file)]
        same = self.source.quantization == "none" and {h.dtype for h in headers} <= {self.dtype}
        return None if same else TORCH[self.dtype]


@dataclass
class _Folder:
    """The folder of an export. `wanted` is how base and adapter answer; None: nothing is measured."""

    job: MlxExport
    folder: Path
    wanted: Reference | None
    say: ProgressCallback

    def __post_init__(self) -> None:
        self.notes: list[str] = []
        self.template: dict[str, Any] = {}
        self.stops: list[int] = []

    def form(self, bits: int) -> Form:
        """Write and measure the model. Raises ExportError, ModelError and DiskError."""
        source, folder = self.job.source, self.folder
        replaced = folder / REPLACED
        changes = deltas(source, self.job.names)
        if self.wanted is not None:
            require_same_deltas(changes, self.wanted.layers, self.job.names)
        fused = open_fused(source, changes, bits, replaced if replaced.is_file() else None)
        survival, types = write_weights(fused, changes, folder, self.say)
        require_survival(survival, types, _fix(bits))
        write_config(source.base.folder, folder, fused.dtype_name, fused.settings)
        write_chat_files(source, folder)
        self.template, self.stops = require_chat(source, folder)
        form = Form("", fused.dtype_name if bits == DEFAULT else _kind(bits), self.job.sizes[bits], survival)
        with open_model(source, folder) as model:
            form = replace(form, strings=require_same_tokens(model, source))
            ignored = model.ignored_boundary(folder, source.trust_remote_code)
        if limits := [length for length in (fused.longrope, ignored) if length is not None]:
            text = _("Beyond {length} tokens, mlx_lm computes this model otherwise than transformers.")
            self.notes = [text.format(length=min(limits))]
        return form if self.wanted is None else self._measured(form, bits, self.wanted)

    def _measured(self, form: Form, bits: int, wanted: Reference) -> Form:
        if bits != DEFAULT:  # the gate of these types allows for rounding of the base
            wanted = replace(wanted, rounded=wanted.live)
        gate = Gate(GATES[bits], TIE, _fix(bits))
        return measured(form, wanted, runtime_name(), lambda: open_model(self.job.source, self.folder), gate, self.say)

    def clear(self) -> None:
        """Delete the files of a form."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != REPLACED:
                path.unlink()


def open_fused(source: ExportSource, changes: Any, bits: int, replaced: Path | None = None) -> Any:
    """Return the model with `changes` in its weights as mlx_lm stores it. Raises LorafitError where MLX is missing."""
    try:
        return registry.load(registry.MLX_FUSED)(source.base.folder, changes, bits, replaced, source.trust_remote_code)
    except ModelError as error:
        error.where = source.base.name
        raise


def _kind(bits: int) -> str:
    return f"{bits}-bit"


def _fix(bits: int) -> str:
    if bits == DEFAULT:
        return _("Export with `--to merged`: mlx_lm may compute this model otherwise than transformers.")
    return _("Choose more bits: `--bits {bits}`.").format(bits=2 * bits)


def _bits_of(request: ExportRequest) -> list[int]:
    """Return the bits that the request asks for; with --keep, all. Raises ConfigError."""
    if request.keep is None:
        return [request.bits or DEFAULT]
    if request.bits is not None:
        raise ConfigError(_("--keep chooses the type of the weights itself."), found=f"--bits {request.bits}",
                          fix=_("Remove one of them."))  # fmt: skip
    return list(ALL_BITS)


def _require_finer(source: ExportSource, bits: list[int], keep: bool) -> list[int]:
    """Return the `bits` that are more than those of a quantized base. Raises ExportError if there are none."""
    stored = source.packed_bits
    finer = [one for one in bits if one > stored]
    if finer and (keep or finer == bits):
        return finer
    raise ExportError(
        _("The base model lies on the grid of these bits already: rounding to it again would take the adapter away."),
        where=source.base.name,
        found=_("base: {stored} bits, export: {bits} bits").format(stored=stored, bits=bits[0]),
        fix=_("Choose more bits: `--bits {bits}`.").format(bits=8 if stored < 8 else 16),
    )


def check(source: ExportSource, request: ExportRequest) -> ExportJob:
    """Return the export. Raises ModelError for a model that mlx_lm does not know or computes otherwise."""
    registry.load(registry.MLX_RUNTIME)
    if not has_type(source.spec.model_type):
        raise ModelError(
            _("The installed mlx-lm does not have this model type."),
            where=source.base.name,
            found=f"model_type: {source.spec.model_type}",
            fix=_("Export with --to merged, or upgrade mlx-lm: {command}").format(command="pip install -U mlx-lm"),
        )
    if request.adapter_only:
        return MlxAdapter.of(source)
    bits = _require_finer(source, _bits_of(request), request.keep is not None)
    names = adapted_names(source)
    plans = {one: open_fused(source, {}, one) for one in bits}
    sizes = {one: sum(place.size for place in plan.places()) for one, plan in plans.items()}
    return MlxExport(source, names, sizes, plans[bits[0]].dtype_name, request.keep)
