"""Write a LoRA adapter alone as a GGUF file, which llama.cpp applies to a GGUF file of the base model.

llama.cpp multiplies B A by alpha / rank of each tensor. It knows neither rsLoRA nor a module's own alpha, so both go into
the one alpha of the file, and what is left into B.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFType, GGUFWriter, Keys

from lorafit.atomic import atomic_file
from lorafit.errors import ModelError
from lorafit.exporters.certificate import Survival
from lorafit.exporters.gguf.architectures import find_architecture, settings_of
from lorafit.exporters.gguf.layout import gguf_name, is_tied, plain_name, transform_of, transformed
from lorafit.exporters.gguf.source import GgufReport, GgufTensor
from lorafit.messages import _
from lorafit.run_folders.adapter import lora_names, modules_of, read_adapter

HEAD = "lm_head"


def write_lora_gguf(adapter: Path, config: Mapping[str, Any], name: str, target: Path) -> GgufReport:
    """Write the adapter in the folder `adapter` to the file `target`, whole or not at all, in float32.

    `config` is the config.json of its base model `name`. Raise AdapterError for an adapter that lorafit cannot read,
    ModelError for a base model or a module that llama.cpp does not know, and DiskError.
    """
    settings = settings_of(config)
    architecture = find_architecture(settings, name)
    trained, tensors = read_adapter(adapter)
    modules = modules_of(tensors)
    plain = trained.as_plain(modules)
    written = []
    with atomic_file(target, "--output") as path:
        writer = GGUFWriter(path, architecture.name)
        writer.add_type(GGUFType.ADAPTER)
        writer.add_name(name)
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, plain.alpha)
        for module in modules:
            ours = gguf_name(architecture, plain_name(module))
            if ours is None or (module.endswith(HEAD) and is_tied(settings, {})):
                raise ModelError(
                    _("llama.cpp cannot apply an adapter to this layer."),
                    where=name,
                    found=module,
                    fix=_("Export the merged model instead: `--to merged`."),
                )
            a, b = (tensors[own] for own in lora_names(module))
            heads, _shift = transform_of(architecture, settings, ours)
            factor = np.float32(plain.alpha_of(module) / plain.alpha)
            for part, own, values in zip(
                "ab", lora_names(module), (a, transformed(b * factor, heads, 0.0)), strict=True
            ):
                writer.add_tensor(f"{ours}.lora_{part}", np.ascontiguousarray(values, np.float32))
                written.append(GgufTensor(f"{ours}.lora_{part}", own, values.shape, "F32", heads if part == "b" else 0))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return GgufReport(target, architecture.name, "f32", target.stat().st_size, tuple(written), (), Survival({}, {}))
