"""Quantization of base models for MLX, and the cache of the quantized models.

Linear layers of the decoder are quantized in groups of 64 from float32; embedding and head stay, as with NF4. The
result is a folder in the user's cache that mlx_lm itself can load. The folder's name contains a hash of its inputs.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.utils import save_model

from lorafit.atomic import atomic_folder
from lorafit.models.lora_targets import CHOOSES
from lorafit.paths import cache_folder

GROUP, BITS = 64, {"4bit": 4, "8bit": 8}


def quantization_settings(bits: int) -> dict[str, Any]:
    """Return the quantization settings that mlx_lm reads in config.json."""
    return {"quantization": {"group_size": GROUP, "bits": bits, "mode": "affine"}}


def quantized_folder(folder: Path, bits: int) -> Path:
    """Return the cache folder for the quantized form of the model in `folder`, which need not exist yet."""
    files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.glob("*.safetensors"))
    config = (folder / "config.json").read_text("utf-8")
    facts = json.dumps([files, config, str(folder.resolve()), quantization_settings(bits), mx.__version__])
    return cache_folder() / "mlx" / f"{folder.name}-{bits}bit-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"


def quantize_layers(model: nn.Module, bits: int) -> None:
    """Quantize the linear layers of the decoder in place."""

    def fits(name: str, module: nn.Module) -> bool:
        inside = ".layers." in f".{name}" and isinstance(module, nn.Linear) and not CHOOSES.search(name)
        return inside and module.weight.shape[-1] % GROUP == 0

    for name, module in model.named_modules():
        if fits(name, module):
            module.weight = module.weight.astype(mx.float32)
    nn.quantize(model, group_size=GROUP, bits=bits, class_predicate=fits)
    # One layer at a time: when MLX evaluated all at once, it held a dozen layers in float32 beside the finished ones
    # (1.7 times the size of Llama-3.2-1B's 4-bit form).
    for module in model.modules():
        if isinstance(module, nn.QuantizedLinear):
            mx.eval(module.parameters())


def write_quantized(model: nn.Module, facts: dict[str, Any], bits: int, place: Path) -> None:
    """Write the quantized `model` to the folder `place`, with `facts` as its config.json."""
    with atomic_folder(place) as folder:
        save_model(folder, model)
        (folder / "config.json").write_text(
            json.dumps({**facts, **quantization_settings(bits)}, indent=1) + "\n", "utf-8"
        )
