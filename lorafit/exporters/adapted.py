"""The base model's tensors with the adapter: which of them it changes, and whether it can be merged into them at all."""

from collections.abc import Callable
from importlib.util import find_spec

from lorafit import registry
from lorafit.engines.base import Setup
from lorafit.errors import AdapterError, ExportError, ModelError
from lorafit.exporters.base import ExportSource
from lorafit.exporters.merge import Delta, MergedTensor, merged_tensors
from lorafit.exporters.rounding import Float32
from lorafit.hardware import detect
from lorafit.messages import _
from lorafit.models.weight_files import read_headers, weight_files
from lorafit.planner import memory_budget
from lorafit.planner.memory import weights_bytes
from lorafit.progress import ProgressCallback
from lorafit.run_folders.adapter import lora_names, read_adapter
from lorafit.units import bytes_text


def adapted_names(source: ExportSource) -> dict[str, str]:
    """Return the names of the weights in the base's files by adapted layer.

    Raises ModelError for a quantized base and AdapterError for layers without a tensor of their own.
    """
    if source.spec.packed is not None:
        raise _quantised(source, _("{bits}-bit, by MLX").format(bits=source.spec.packed.bits))
    if source.quantization == "8bit":
        raise _quantised(source, _("{bits}, by bitsandbytes, in the training").format(bits=source.quantization))
    if source.quantization == "4bit":
        _require_4bit(source)
    headers = {h.name: h for file in weight_files(source.base.folder) for h in read_headers(file)}
    names = file_names(source, source.modules)
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
    return names


def adapted_tensors(source: ExportSource, names: dict[str, str], say: ProgressCallback) -> list[MergedTensor]:
    """Return all tensors of the base with the adapter on those of `names`; none is read yet, but the adapter is."""
    return merged_tensors(source.base.folder, deltas(source, names), _dequantized(source, say))


def deltas(source: ExportSource, names: dict[str, str]) -> dict[str, Delta]:
    """Return the adapter by the names of the tensors in the base's files."""
    config, tensors = read_adapter(source.adapter)
    found = {}
    for module, name in names.items():
        a, b = (tensors[own] for own in lora_names(module))
        found[name] = Delta(a, b, config.scale_of(module))
    return found


def dequantized_note(source: ExportSource) -> list[str]:
    """Return what a user must know of the base's weights, as no or one text."""
    if source.quantization == "none":
        return []
    return [_("The weights are those of the base model in 4 bits, dequantized: the adapter was trained on these.")]


def _dequantized(source: ExportSource, say: ProgressCallback) -> dict[str, Callable[[], Float32]]:
    """Return the weights that the training stored in 4 bits, dequantized, by the names in the base's files."""
    if source.trained is None or source.quantization == "none":
        return {}
    say(_("Quantizing the base model as in the training"))
    precision = source.trained.plan.precision
    setup = Setup(source.base.folder, source.base.name, "cpu", precision, "4bit", source.trust_remote_code)
    weights = registry.load(registry.DEQUANTIZED_WEIGHTS)(setup)
    names = file_names(source, list(weights))
    return {names[module]: weight for module, weight in weights.items()}


def file_names(source: ExportSource, modules: list[str]) -> dict[str, str]:
    """Return the names of the weights of `modules` in the base's files. Raises AdapterError."""
    names = [header.name for file in weight_files(source.base.folder) for header in read_headers(file)]
    found: dict[str, str] = registry.load(registry.MODULE_TENSORS)(
        source.base.folder, names, modules, source.trust_remote_code
    )
    return found


def too_large_to_measure(source: ExportSource, precision: str) -> str | None:
    """Return why the model cannot be loaded here to measure its answers; None: it can."""
    free = int(memory_budget.MARGIN * detect.detect_machine().available_bytes)
    needed = weights_bytes(source.spec, precision, "none")
    if needed <= free:
        return None
    text = _("Not measured how the export answers: this needs {needed} of memory, and {free} are available.")
    return text.format(needed=bytes_text(needed), free=bytes_text(free))


def _require_4bit(source: ExportSource) -> None:
    """Raise ExportError if the base cannot be quantized here as in the training."""
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
