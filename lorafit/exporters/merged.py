"""The target `merged`: a whole model in transformers' layout, with the adapter in its weights.

The names of the tensors are those of the base's files, so that every loader of the base reads the export. Tensors of
other parts, such as vision towers, are copied.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from lorafit import registry
from lorafit.engines.base import Setup
from lorafit.errors import AdapterError, ExportError, ModelError
from lorafit.exporters.base import ExportRequest, ExportSource
from lorafit.exporters.certificate import Certificate, Survival
from lorafit.exporters.chat_files import model_card, require_chat, write_chat_files, write_config
from lorafit.exporters.facts import adapter_facts, base_facts
from lorafit.exporters.measure import measure, require_same
from lorafit.exporters.merge import Delta, MergedTensor, merged_tensors
from lorafit.exporters.rounding import STORED, TORCH, WORDS, Float32, projections, rounded
from lorafit.exporters.survival import require_survival
from lorafit.exporters.weight_writer import Slot, WeightWriter, float_slot, shards, write_index
from lorafit.hardware import detect
from lorafit.messages import _
from lorafit.models.weight_files import read_headers, weight_files
from lorafit.planner import memory_budget
from lorafit.planner.memory import weights_bytes
from lorafit.progress import ProgressCallback
from lorafit.run_folders.adapter import lora_names, read_adapter
from lorafit.units import MIB, bytes_text

OTHER_FILES_BYTES = 64 * MIB  # tokenizer, settings and certificate


@dataclass
class MergedExport:
    """A checked export: `names` are the tensors in the base's files by adapted layer, `dtype` None keeps each type."""

    source: ExportSource
    names: dict[str, str]
    dtype: str | None

    @property
    def needed_bytes(self) -> int:
        """The bytes of all tensors in their new types, and of the other files."""
        return (
            sum(self._slot(tensor).size for tensor in merged_tensors(self.source.base.folder, {})) + OTHER_FILES_BYTES
        )

    def write(self, folder: Path, say: ProgressCallback) -> Certificate:
        """Write model and certificate. Raises ExportError if the files do not compute what the adapter does."""
        source = self.source
        tensors = merged_tensors(source.base.folder, self._deltas(), self._dequantized(say))
        survival = self._write_weights(folder, tensors, say)
        types = {tensor.name: self._slot(tensor).dtype for tensor in tensors}
        require_survival(survival, types)
        floats = {dtype for dtype in types.values() if dtype in STORED.values()}
        one = floats.pop() if len(floats) == 1 else None
        del tensors  # with them, the adapter
        write_config(source.base.folder, folder, one)
        write_chat_files(source, folder)
        (folder / "README.md").write_text(model_card(source), "utf-8")
        template, stops = require_chat(source, folder)
        certificate = Certificate("merged", base_facts(source), adapter_facts(source), dtype=one or "mixed",
                                  quantization=source.quantization, survival=survival, template=template,
                                  stop_ids=stops, notes=self._notes())  # fmt: skip
        return self._measured(certificate, folder, say)

    def _notes(self) -> list[str]:
        if self.source.quantization == "none":
            return []
        return [_("The weights are those of the base model in 4 bits, dequantized: the adapter was trained on these.")]

    def _measured(self, certificate: Certificate, folder: Path, say: ProgressCallback) -> Certificate:
        """Return the certificate with the answers of the export, or with the reason why they were not measured."""
        free = int(memory_budget.MARGIN * detect.detect_machine().available_bytes)
        needed = {precision: weights_bytes(self.source.spec, precision, "none") for precision in ("fp32", "bf16")}
        precision = "bf16" if needed["fp32"] > free and self._is_bf16(certificate) else "fp32"
        if needed[precision] > free:
            text = _("Not measured how the export answers: this needs {needed} of memory, and {free} are available.")
            note = text.format(needed=bytes_text(needed[precision]), free=bytes_text(free))
            return replace(certificate, notes=[*certificate.notes, note])
        found = measure(self.source, folder, precision, self._rounding(), say)
        require_same(found)
        notes = [_("The adapter changes nothing on the measured texts.")] if found.ratio is None else []
        return replace(certificate, behaviour=found, notes=[*certificate.notes, *notes])

    def _rounding(self) -> str | None:
        """Return the type to which weights of the base are rounded, as torch names it; None: all keep their type."""
        stored = {header.dtype for file in weight_files(self.source.base.folder) for header in read_headers(file)}
        same = self.dtype in (None, "F32") or not (stored & WORDS.keys()) - {self.dtype}
        return None if same or self.dtype is None else TORCH[self.dtype]

    def _is_bf16(self, certificate: Certificate) -> bool:
        """Return whether bf16 storage holds base and export exactly; the arithmetic on them is float32 in any case."""
        stored = {header.dtype for file in weight_files(self.source.base.folder) for header in read_headers(file)}
        return stored == {"BF16"} and certificate.dtype == "BF16" and self.source.quantization == "none"

    def _deltas(self) -> dict[str, Delta]:
        """Return the adapter by the names of the tensors in the base's files."""
        config, tensors = read_adapter(self.source.adapter)
        found = {}
        for module, name in self.names.items():
            a, b = (tensors[own] for own in lora_names(module))
            found[name] = Delta(a, b, config.scale_of(module))
        return found

    def _dequantized(self, say: ProgressCallback) -> dict[str, Callable[[], Float32]]:
        """Return the weights that the training stored in 4 bits, dequantized, by the names in the base's files."""
        source = self.source
        if source.trained is None or source.quantization == "none":
            return {}
        say(_("Quantizing the base model as in the training"))
        precision = source.trained.plan.precision
        setup = Setup(source.base.folder, source.base.name, "cpu", precision, "4bit", source.trust_remote_code)
        weights = registry.load(registry.DEQUANTIZED_WEIGHTS)(setup)
        names = _file_names(source, list(weights))
        return {names[module]: weight for module, weight in weights.items()}

    def _slot(self, tensor: MergedTensor) -> Slot:
        header = tensor.header
        if tensor.is_float:
            return float_slot(header.name, self.dtype or header.dtype, header.shape)
        return Slot(header.name, header.dtype, header.shape, header.size)

    def _write_weights(self, folder: Path, tensors: list[MergedTensor], say: ProgressCallback) -> Survival:
        by_name = {tensor.name: tensor for tensor in tensors}
        files = shards(self._slot(tensor) for tensor in tensors)
        survival, done = Survival({}, {}), 0
        total = sum(slot.size for slots in files.values() for slot in slots)
        zero = 0
        for file, slots in files.items():
            with WeightWriter(folder / file, slots) as writer:
                for slot in slots:
                    say(_("Merging: {share:.0%}").format(share=done / max(total, 1)))
                    zero += _write_tensor(by_name[slot.name], slot.dtype, writer, survival)
                    done += slot.size
        write_index(folder, files)
        return replace(survival, zero=zero)


def _write_tensor(tensor: MergedTensor, dtype: str, writer: WeightWriter, survival: Survival) -> bool:
    """Write one tensor and add what is left of its delta to `survival`. Return whether its delta is zero.

    Raises ExportError if a value is not finite in the new type.
    """
    if tensor.delta is None and tensor.weight is None and dtype == tensor.header.dtype:
        for piece in tensor.raw():
            writer.write(piece)
        return False
    kept = size = norm = 0.0
    for block in tensor.blocks():
        merged = block.merged
        words = rounded(merged, dtype)
        if not np.isfinite(words if dtype != "BF16" else merged).all() and np.isfinite(block.weight).all():
            raise _not_finite(tensor.name, dtype)
        if block.delta is not None:
            one = projections(block.weight, block.delta, words, dtype)
            kept, size = kept + one[0], size + one[1]
            norm += float(np.vdot(block.weight, block.weight))
        writer.write(words)
    if size > 0:
        survival.slopes[tensor.name] = kept / size
        survival.reach[tensor.name] = (size / norm) ** 0.5 if norm else 1.0
    return tensor.delta is not None and size == 0


def _not_finite(name: str, dtype: str) -> ExportError:
    fix = _("Use another type: `--dtype bf16` or `--dtype fp32`.")
    return ExportError(_("A weight is too large for this type."), where=name, found=dtype, fix=fix)


def check(source: ExportSource, request: ExportRequest) -> MergedExport:
    """Return the export. Raises ModelError for a quantized base and AdapterError for layers without a tensor of their own."""
    if source.spec.packed is not None:
        raise _quantised(source, _("{bits}-bit, by MLX").format(bits=source.spec.packed.bits))
    if source.quantization == "8bit":
        raise _quantised(source, _("{bits}, by bitsandbytes, in the training").format(bits=source.quantization))
    if source.quantization == "4bit":
        _require_4bit(source)
    headers = {h.name: h for file in weight_files(source.base.folder) for h in read_headers(file)}
    names = _file_names(source, source.modules)
    tensors = {name: MergedTensor(source.base.folder, headers[name]) for name in names.values()}
    if packed := [name for name, tensor in tensors.items() if not tensor.is_float]:
        raise _quantised(source, f"{packed[0]}: {headers[packed[0]].dtype}")
    adapter = read_adapter(source.adapter)[1]
    for module, name in names.items():
        a, b = (adapter[own].shape for own in lora_names(module))
        if (b[0], a[1]) != headers[name].shape:
            found = f"{name}: {headers[name].shape} != {(b[0], a[1])}"
            raise AdapterError(_("This adapter cannot be merged into the files of its base model."), found=found,
                               where=source.base.folder, fix=_("Export the adapter itself: `--to peft`."))  # fmt: skip
    return MergedExport(source, names, None if request.dtype == "auto" else STORED[request.dtype])


def _file_names(source: ExportSource, modules: list[str]) -> dict[str, str]:
    """Return the names of the weights of `modules` in the base's files. Raises AdapterError."""
    names = [header.name for file in weight_files(source.base.folder) for header in read_headers(file)]
    found: dict[str, str] = registry.load(registry.MODULE_TENSORS)(
        source.base.folder, names, modules, source.trust_remote_code
    )
    return found


def _require_4bit(source: ExportSource) -> None:
    """Raise HardwareError or LorafitError if the base cannot be quantized here as in the training."""
    if find_spec("bitsandbytes") is None:
        command = "pip install bitsandbytes"
        raise ExportError(
            _("The training stored the base model in 4 bits, and the package that does so is not installed."),
            where="bitsandbytes",
            fix=_("Install it: {command}").format(command=command),
        )
    needed = weights_bytes(source.spec, "fp32", "4bit")
    free = int(memory_budget.MARGIN * detect.detect_machine().available_bytes)
    if needed > free:
        raise ExportError(
            _("Not enough memory for the base model in 4 bits, which the export of this run needs."),
            found=_("{free} available, {needed} needed").format(free=bytes_text(free), needed=bytes_text(needed)),
            fix=_("Close other programs, or export the adapter itself: `--to peft`."),
        )


def _quantised(source: ExportSource, found: str) -> ModelError:
    return ModelError(
        _("An adapter that was trained on quantized weights cannot be merged."),
        where=source.base.name,
        found=found,
        fix=_("Export the adapter itself: `--to peft`."),
    )
