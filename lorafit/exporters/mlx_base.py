"""A base model that mlx_lm quantized, as a folder with its dequantized weights, which an adapter can be merged into.

The weight of an affine group is scale x q + bias, with q a whole number of 2 to 8 bits. The rows of q are one stream of
bits, the lowest first, in 32-bit words. The dequantized weights are float32, since 16 bits do not hold this sum.
Letters: O outputs, I inputs, G groups of a row.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafit import registry
from lorafit.atomic import disk_errors, ensure_disk_space, hidden_path
from lorafit.engines.base import Setup
from lorafit.errors import ModelError
from lorafit.exporters.base import FLAG, ExportRequest, ExportSource
from lorafit.exporters.merge import BLOCK, MergedTensor
from lorafit.exporters.rounding import STORED, WORDS, Float32, rounded, widened
from lorafit.exporters.source import beside
from lorafit.exporters.weight_writer import Slot, WeightWriter, float_slot, shards, write_index
from lorafit.messages import _
from lorafit.models.hub import FoundModel
from lorafit.models.spec import read_config, read_spec
from lorafit.models.weight_files import Header, read_headers, weight_files
from lorafit.progress import ProgressCallback

BITS = (2, 3, 4, 5, 6, 8)
ADAPTER_ALONE = ("peft", "vllm")  # targets that read no weight of the base
SETTINGS = ("quantization", "quantization_config")
# Types of which mlx_lm keeps all tensors under transformers' names and in their layout.
KNOWN = frozenset(["gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3"])
OTHER_FILES = ("*.json", "*.jinja", "*.py", "*.model", "*.txt", "*.tiktoken", "LICENSE*", "NOTICE*", "USE_POLICY*")


@dataclass(frozen=True)
class PackedTensor:
    """A quantized weight [O,I]: the headers of its words, scales [O,G] and biases [O,G] in their files, and its bits.

    The training rounded scales and biases to the type `precision`; None: it is not known.
    """

    words: tuple[Path, Header]
    scales: tuple[Path, Header]
    biases: tuple[Path, Header]
    bits: int
    precision: str | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """O and I."""
        rows, words = self.words[1].shape
        return rows, words * 32 // self.bits

    def blocks(self) -> Iterator[Float32]:
        """Yield the dequantized weight in blocks of rows."""
        words, scales, biases = (_mapped(*one) for one in (self.words, self.scales, self.biases))
        step = max(1, BLOCK // self.shape[1])
        for start in range(0, len(words), step):
            rows = slice(start, start + step)
            scale, bias = (self._as_trained(widened(one[rows], self.scales[1].dtype)) for one in (scales, biases))
            yield dequantized(words[rows], scale, bias, self.bits)

    def _as_trained(self, values: Float32) -> Float32:
        return values if self.precision is None else widened(rounded(values, self.precision), self.precision)


def dequantized(words: NDArray[np.uint32], scales: Float32, biases: Float32, bits: int) -> Float32:
    """Return the weights [O,I] of packed `words` [O,I x bits / 32] with `scales` and `biases` [O,G]."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    numbers = stream.reshape(len(words), -1, bits) @ (1 << np.arange(bits)).astype(np.uint8)
    grouped = numbers.reshape(*scales.shape, -1).astype(np.float32)
    grouped *= scales[..., None]
    grouped += biases[..., None]
    return grouped.reshape(len(words), -1)


@contextmanager
def with_plain_base(
    source: ExportSource, request: ExportRequest, target: Path, say: ProgressCallback
) -> Iterator[tuple[ExportSource, ExportRequest]]:
    """Yield source and request, with a dequantized base in a folder that is deleted after the block if MLX quantized it.

    The type of the exported weights is that of the scales, unless the user chose one. Raises ModelError or DiskError.
    """
    alone = request.to in ADAPTER_ALONE or (request.to == "mlx" and request.adapter_only)
    base = source.base.folder if alone else _packed_folder(source, say)
    if base is None or alone:
        yield source, request
        return
    packed, plain = _tensors(base, source)
    slots = [*(float_slot(name, "F32", one.shape) for name, one in packed.items()), *map(_slot, plain)]
    folder = hidden_path(beside(target, "base"), "tmp")
    fix = _("Free disk space, or choose another folder with {flag}.").format(flag=FLAG)
    needed = sum(slot.size for slot in slots)
    ensure_disk_space(folder, needed, _("Not enough disk space for the dequantized base model."), fix)
    try:
        with disk_errors(target, FLAG):
            folder.mkdir()
            _write_settings(source.base.folder, folder)
            _write_weights(folder, slots, packed, {one.name: one for one in plain}, say)
        if request.to == "merged" and request.dtype == "auto":
            kind = _type_of(source, packed)
            request = request.model_copy(update={"dtype": next(k for k, v in STORED.items() if v == kind)})
        yield _on(source, folder, next(iter(packed.values())).bits), request
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _packed_folder(source: ExportSource, say: ProgressCallback) -> Path | None:
    """Return the folder of the base as MLX quantized it, before or for the training; None: MLX did not."""
    if source.spec.packed is not None:
        return source.base.folder
    if source.trained is None or source.quantization == "none" or source.trained.plan.engine != "mlx":
        return None
    say(_("Quantizing the base model as in the training"))
    plan = source.trained.plan
    setup = Setup(
        source.base.folder, source.base.name, "cpu", plan.precision, plan.quantization, source.trust_remote_code
    )
    folder: Path = registry.load(registry.MLX_QUANTIZED_BASE)(setup)
    return folder


def _type_of(source: ExportSource, packed: Mapping[str, PackedTensor]) -> str:
    """Return the type of the exported weights, as in safetensors: that of the scales, or of the training."""
    if source.spec.packed is None and source.trained is not None:
        return STORED[source.trained.plan.precision]
    return next(iter(packed.values())).scales[1].dtype


def _on(source: ExportSource, folder: Path, bits: int) -> ExportSource:
    """Return `source` on the dequantized base in `folder`, which has no quantization any more."""
    text = _(
        "The weights are those of the base model in {bits} bits (MLX), dequantized: the adapter was trained on these."
    )
    trained = source.trained
    if trained is not None:
        trained = replace(trained, plan=replace(trained.plan, quantization="none"))
    return replace(
        source,
        base=FoundModel(folder, source.base.name),
        spec=read_spec(folder),
        trained=trained,
        packed_base=source.base.folder,
        packed_bits=bits,
        notes=(*source.notes, text.format(bits=bits)),
    )


def _tensors(base: Path, source: ExportSource) -> tuple[dict[str, PackedTensor], list[MergedTensor]]:
    """Return the quantized weights by name, and the other tensors, of the model in `base`. Raises ModelError."""
    precision = None if source.trained is None else STORED[source.trained.plan.precision]
    config = read_config(base)
    if config.get("model_type") not in KNOWN:
        raise _refused(base, _("model type {kind}").format(kind=config.get("model_type")))
    settings = config["quantization"]
    found = {header.name: (file, header) for file in weight_files(base) for header in read_headers(file)}
    modules = [name.removesuffix(".scales") for name in found if name.endswith(".scales")]
    packed = {}
    for module in modules:
        own = settings.get(module)
        own = own if isinstance(own, dict) else settings
        bits, mode = own.get("bits", settings.get("bits")), own.get("mode", settings.get("mode", "affine"))
        parts = [found.get(f"{module}.{part}") for part in ("weight", "scales", "biases")]
        if mode != "affine" or bits not in BITS or None in parts:
            raise _refused(base, f"{module}: mode {mode}, {bits} bits")
        words, scales, biases = (part for part in parts if part is not None)
        tensor = PackedTensor(words, scales, biases, bits, precision)
        _check_shapes(base, module, tensor)
        packed[f"{module}.weight"] = tensor
    taken = {f"{module}.{part}" for module in modules for part in ("weight", "scales", "biases")}
    plain = [MergedTensor(file, header) for name, (file, header) in found.items() if name not in taken]
    if strange := [tensor.name for tensor in plain if not tensor.is_float]:
        raise _refused(base, strange[0])
    return packed, plain


def _check_shapes(base: Path, module: str, tensor: PackedTensor) -> None:
    """Raise ModelError unless the parts of `tensor` fit together."""
    headers = [one[1] for one in (tensor.words, tensor.scales, tensor.biases)]
    types = [header.dtype for header in headers]
    fits = all(len(header.shape) == 2 and header.shape[0] == headers[0].shape[0] for header in headers)
    fits = fits and types[0] == "U32" and types[1] == types[2] and types[1] in STORED.values()
    if not fits or headers[1].shape != headers[2].shape or tensor.shape[1] % headers[1].shape[1]:
        raise _refused(base, f"{module}: {', '.join(f'{header.dtype} {list(header.shape)}' for header in headers)}")


def _refused(base: Path, found: str) -> ModelError:
    return ModelError(
        _("lorafit cannot dequantize this base model."),
        where=base,
        found=found,
        fix=_("Export the adapter itself: `--to peft`."),
    )


def _slot(tensor: MergedTensor) -> Slot:
    return float_slot(tensor.name, tensor.header.dtype, tensor.header.shape)


def _mapped(file: Path, header: Header) -> NDArray[Any]:
    """Return the tensor in `file` without reading it."""
    words = np.uint32 if header.dtype == "U32" else WORDS[header.dtype]
    return np.memmap(file, words, "r", header.start, header.shape)


def _write_settings(base: Path, folder: Path) -> None:
    """Write the files beside the weights: config.json without the quantization, tokenizer, code."""
    for path in (path for pattern in OTHER_FILES for path in sorted(base.glob(pattern))):
        if not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    facts = {name: value for name, value in read_config(base).items() if name not in SETTINGS}
    (folder / "config.json").write_text(json.dumps(facts, ensure_ascii=False, indent=2) + "\n", "utf-8")


def _write_weights(
    folder: Path,
    slots: list[Slot],
    packed: Mapping[str, PackedTensor],
    plain: Mapping[str, MergedTensor],
    say: ProgressCallback,
) -> None:
    files = shards(slots)
    total, done = sum(slot.size for slot in slots), 0
    for name, own in files.items():
        with WeightWriter(folder / name, own) as writer:
            for slot in own:
                say(_("Dequantizing the base model: {share:.0%}").format(share=done / max(total, 1)))
                for piece in packed[slot.name].blocks() if slot.name in packed else plain[slot.name].raw():
                    writer.write(piece)
                done += slot.size
    write_index(folder, files)
