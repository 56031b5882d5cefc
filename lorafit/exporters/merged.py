"""The target `merged`: a whole model in transformers' layout, with the adapter in its weights.

The names of the tensors are those of the base's files, so that every loader of the base reads the export. Tensors of
other parts, such as vision towers, are copied.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lorafit.engines.base import Setup
from lorafit.errors import ExportError
from lorafit.exporters.adapted import adapted_names, adapted_tensors, dequantized_note, too_large_to_measure
from lorafit.exporters.base import ExportRequest, ExportSource
from lorafit.exporters.certificate import Certificate, Form, Survival
from lorafit.exporters.chat_files import require_chat, write_chat_files, write_config
from lorafit.exporters.facts import adapter_facts, base_facts
from lorafit.exporters.measure import OF_16_BITS, EngineModel, Gate, Runtime, measured, reference
from lorafit.exporters.merge import MergedTensor, merged_tensors
from lorafit.exporters.products import Product, add, product, require_same_layers
from lorafit.exporters.rounding import STORED, TORCH, WORDS, projections, rounded
from lorafit.exporters.survival import require_survival
from lorafit.exporters.weight_writer import Slot, WeightWriter, float_slot, shards, write_index
from lorafit.messages import _
from lorafit.models.weight_files import read_headers, weight_files
from lorafit.progress import ProgressCallback
from lorafit.units import MIB

OTHER_FILES_BYTES = 64 * MIB  # tokenizer, settings and certificate
TIE = {"F32": 2e-3, "F64": 2e-3}  # nats that make a close call of a greedy answer
WIDE_TIE = 0.05  # with 16 bits


@dataclass
class MergedExport:
    """A checked export: `names` are the tensors in the base's files by adapted layer, `dtype` None keeps each type."""

    source: ExportSource
    names: dict[str, str]
    dtype: str | None
    layers: dict[str, Product] = field(default_factory=dict)  # of the written tensors, by name

    @property
    def needed_bytes(self) -> int:
        """The bytes of all tensors in their new types, and of the other files."""
        return (
            sum(self._slot(tensor).size for tensor in merged_tensors(self.source.base.folder, {})) + OTHER_FILES_BYTES
        )

    def write(self, folder: Path, say: ProgressCallback) -> Certificate:
        """Write model and certificate. Raises ExportError if the files do not compute what the adapter does."""
        source = self.source
        tensors = adapted_tensors(source, self.names, say)
        survival = self._write_weights(folder, tensors, say)
        types = {tensor.name: self._slot(tensor).dtype for tensor in tensors}
        size = sum(self._slot(tensor).size for tensor in tensors)
        require_survival(survival, types, _fix())
        floats = {dtype for dtype in types.values() if dtype in STORED.values()}
        one = floats.pop() if len(floats) == 1 else None
        del tensors  # with them, the adapter
        write_config(source.base.folder, folder, one)
        write_chat_files(source, folder)
        template, stops = require_chat(source, folder)
        form = Form("", one or "mixed", size, survival)
        certificate = Certificate("merged", base_facts(source), adapter_facts(source), source.quantization, [form],
                                  template, stops, dequantized_note(source))  # fmt: skip
        return self._measured(certificate, folder, say)

    def _measured(self, certificate: Certificate, folder: Path, say: ProgressCallback) -> Certificate:
        """Return the certificate with the answers of the export, or with the reason why they were not measured."""
        source, form = self.source, certificate.forms[0]
        precision = "bf16" if too_large_to_measure(source, "fp32") and self._is_bf16(form) else "fp32"
        if note := too_large_to_measure(source, precision):
            return replace(certificate, notes=[*certificate.notes, note])
        wanted = reference(source, precision, self._rounding(), say)
        require_same_layers(self.layers, wanted.layers, self.names, source.quantization)
        setup = Setup(folder, source.base.name, "cpu", precision, "none", source.trust_remote_code)
        gate = Gate(OF_16_BITS, TIE.get(form.dtype, WIDE_TIE), _fix())
        form = measured(form, wanted, "transformers", lambda: nullcontext(EngineModel(setup)), gate, say)
        return replace(certificate, forms=[form])

    def _rounding(self) -> str | None:
        """Return the type to which weights of the base are rounded, as torch names it; None: all keep their type."""
        stored = {header.dtype for file in weight_files(self.source.base.folder) for header in read_headers(file)}
        same = self.dtype in (None, "F32") or not (stored & WORDS.keys()) - {self.dtype}
        return None if same or self.dtype is None else TORCH[self.dtype]

    def _is_bf16(self, form: Form) -> bool:
        """Return whether bf16 storage holds base and export exactly; the arithmetic on them is float32 in any case."""
        stored = {header.dtype for file in weight_files(self.source.base.folder) for header in read_headers(file)}
        return stored == {"BF16"} and form.dtype == "BF16" and self.source.quantization == "none"

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
                    zero += _write_tensor(by_name[slot.name], slot.dtype, writer, survival, self.layers)
                    done += slot.size
        write_index(folder, files)
        return replace(survival, zero=zero)


def open_form(source: ExportSource, folder: Path, _length: int) -> AbstractContextManager[Runtime]:
    """Return the model in `folder`, loaded with transformers' weights in float32."""
    setup = Setup(folder, source.base.name, "cpu", "fp32", "none", source.trust_remote_code)
    return nullcontext(EngineModel(setup))


def _fix() -> str:
    return _("Export in float32: `--dtype fp32`. If that fails too, please report it; `--to peft` exports the adapter.")


def _write_tensor(
    tensor: MergedTensor, dtype: str, writer: WeightWriter, survival: Survival, layers: dict[str, Product]
) -> bool:
    """Write one tensor, add what is left of its delta to `survival` and its products to `layers`.

    Return whether its delta is zero.

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
            add(layers, tensor.name, product(block.weight, block.delta))
        writer.write(words)
    survival.add(tensor.name, kept, size, norm)
    return tensor.delta is not None and size == 0


def _not_finite(name: str, dtype: str) -> ExportError:
    fix = _("Use another type: `--dtype bf16` or `--dtype fp32`.")
    return ExportError(_("A weight is too large for this type."), where=name, found=dtype, fix=fix)


def check(source: ExportSource, request: ExportRequest) -> MergedExport:
    """Return the export. Raises ModelError for a quantized base and AdapterError for layers without a tensor of their own."""
    return MergedExport(source, adapted_names(source), None if request.dtype == "auto" else STORED[request.dtype])
