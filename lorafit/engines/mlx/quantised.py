"""How is a base quantised for MLX, and where does it lie so that this is done once?

Linear layers of the decoder in groups of 64, from their numbers in float32; embedding and head stay, as with NF4. The
result lies in the user's cache as a folder that mlx_lm itself loads, under a name made of what it was made from.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.utils import save_model

from lorafit.atomic import whole_folder
from lorafit.paths import cache_folder

GROUP, BITS = 64, {"4bit": 4, "8bit": 8}
ROUTER = re.compile(r"\.(gate|router)$")  # sends tokens to experts: a linear layer only in mlx_lm


def settings(bits: int) -> dict[str, Any]:
    """As config.json says it to mlx_lm."""
    return {"quantization": {"group_size": GROUP, "bits": bits, "mode": "affine"}}


def place_of(folder: Path, bits: int) -> Path:
    """Where the quantised form of the model in `folder` lies, or would lie."""
    files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.glob("*.safetensors"))
    config = (folder / "config.json").read_text("utf-8")
    facts = json.dumps([files, config, str(folder.resolve()), settings(bits), mx.__version__])
    return cache_folder() / "mlx" / f"{folder.name}-{bits}bit-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"


def quantise(model: nn.Module, bits: int) -> None:
    """Quantise the linear layers of the decoder in place."""

    def fits(name: str, module: nn.Module) -> bool:
        inside = ".layers." in f".{name}" and isinstance(module, nn.Linear) and not ROUTER.search(name)
        return inside and module.weight.shape[-1] % GROUP == 0

    for name, module in model.named_modules():
        if fits(name, module):
            module.weight = module.weight.astype(mx.float32)
    nn.quantize(model, group_size=GROUP, bits=bits, class_predicate=fits)
    # One by one: all at once, a dozen of them lay in float32 beside what was done (1.7 times Llama-3.2-1B's 4-bit form).
    for module in model.modules():
        if isinstance(module, nn.QuantizedLinear):
            mx.eval(module.parameters())


def keep(model: nn.Module, facts: dict[str, Any], bits: int, place: Path) -> None:
    """Write the quantised `model`, whose config.json says `facts`, to `place`."""
    with whole_folder(place) as folder:
        save_model(folder, model)
        (folder / "config.json").write_text(json.dumps({**facts, **settings(bits)}, indent=1) + "\n", "utf-8")
