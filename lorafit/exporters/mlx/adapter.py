"""`--to mlx --adapter_only`: the adapter in mlx-lm's own layout, which mlx_lm applies to the base model.

mlx-lm computes y = W x + scale * (x a) b with one rank and one scale for all layers. So a lower rank is filled up with
zeros, and what is left of a layer's scale (rsLoRA, a module's own alpha) goes into b.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from lorafit import registry
from lorafit.exporters.adapted import too_large_to_measure
from lorafit.exporters.base import ExportSource
from lorafit.exporters.certificate import Certificate, Form
from lorafit.exporters.facts import adapter_facts, base_facts
from lorafit.exporters.measure import Gate, measured, reference
from lorafit.exporters.mlx.runtime import GATES, TIE, open_model, runtime_name
from lorafit.exporters.rounding import Float32
from lorafit.messages import _
from lorafit.progress import ProgressCallback
from lorafit.run_folders.adapter import AdapterConfig, lora_names, read_adapter
from lorafit.run_folders.foreign_adapter import MLX_WEIGHTS
from lorafit.run_folders.peft_form import CONFIG

COMMANDS = "mlx_lm.chat --model {base} --adapter-path {{folder}}"


@dataclass
class MlxAdapter:
    """A checked export of an adapter alone. `names` are mlx_lm's names of its layers."""

    source: ExportSource
    names: dict[str, str]

    @classmethod
    def of(cls, source: ExportSource) -> "MlxAdapter":
        """Return the export. Raises ModelError and AdapterError for models and layers that mlx_lm has otherwise."""
        names = registry.load(registry.MLX_LAYERS)(source.base.folder, source.modules, source.trust_remote_code)
        return cls(source, names)

    @property
    def needed_bytes(self) -> int:
        """The bytes of the adapter in float32, at most."""
        tensors = read_adapter(self.source.adapter)[1]
        return 4 * sum(2 * tensor.size for tensor in tensors.values())

    def write(self, folder: Path, say: ProgressCallback) -> Certificate:
        """Write the adapter. Raises ExportError if mlx_lm does not compute with it what lorafit does."""
        source = self.source
        config, tensors = read_adapter(source.adapter)
        size = _write(folder, config, tensors, self.names, Path(source.base.name).name)
        form, why = Form(MLX_WEIGHTS, "F32", size), too_large_to_measure(source, "fp32")
        notes = [_("The folder has the adapter alone: mlx_lm needs the base model beside it.")]
        if source.quantization != "none" or source.spec.packed is not None:
            why = _("Not measured how the export answers: the adapter was trained on quantized weights.")
            if source.quantization != "none":
                text = _("The adapter was trained on the base model in {bits}. Load the base model in the same way.")
                notes.append(text.format(bits=source.quantization))
        if why:
            with open_model(source, source.base.folder, folder):
                notes.append(why)
        else:
            form = self._measured(form, folder, say)
        command = COMMANDS.format(base=base_facts(source)["name"])
        return Certificate("mlx", base_facts(source), adapter_facts(source), source.quantization, [form],
                           stop_ids=source.tokenizer.end_ids, notes=notes, commands=[command])  # fmt: skip

    def _measured(self, form: Form, folder: Path, say: ProgressCallback) -> Form:
        source = self.source
        wanted = reference(source, "fp32", None, say)
        fix = _("Export the merged model instead: `--to mlx` without --adapter_only.")
        gate = Gate(GATES[16], TIE, fix)
        return measured(form, wanted, runtime_name(), lambda: open_model(source, source.base.folder, folder), gate, say)


def _write(folder: Path, config: AdapterConfig, tensors: dict[str, Float32], names: dict[str, str], base: str) -> int:
    """Write the adapter of the layers `names` and return the bytes of its weights."""
    rank = max(config.rank_of(module) for module in names)
    scale = max(config.scale_of(module) for module in names)
    found: dict[str, Float32] = {}
    for module, own in names.items():
        a, b = (tensors[part] for part in lora_names(module))
        zeros = rank - len(a)
        factor = np.float32(config.scale_of(module) / scale)
        found[f"{own}.lora_a"] = np.ascontiguousarray(np.pad(a, ((0, zeros), (0, 0))).T)
        found[f"{own}.lora_b"] = np.ascontiguousarray(np.pad(b * factor, ((0, 0), (0, zeros))).T)
    save_file(found, folder / MLX_WEIGHTS, {"format": "mlx"})
    keys = sorted(names.values())
    layers = len({name.split(".layers.")[1].partition(".")[0] for name in keys})
    lora = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys}
    settings = {"fine_tune_type": "lora", "num_layers": layers, "lora_parameters": lora, "model": base}
    (folder / CONFIG).write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", "utf-8")
    return sum(one.nbytes for one in found.values())
