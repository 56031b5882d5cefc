"""Which plain numbers does a quantised base stand for? Written out as a model folder like any other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lorafit.models.spec import weight_files

Array = NDArray[Any]


def plain_model(engine: Any, folder: Path, target: Path) -> Path:
    """The model in `folder` in float32, with what the engine's weights stand for in the place of those it quantised."""
    target.mkdir()
    facts = json.loads((folder / "config.json").read_text("utf-8"))
    (target / "config.json").write_text(json.dumps({**facts, "dtype": "float32"}), "utf-8")
    files = [load_file(file) for file in weight_files(folder)]
    tensors = {name: array.astype(np.float32) for arrays in files for name, array in arrays.items()}
    written = {f"{name}.weight": weight for name, weight in plain_weights(engine).items()}
    assert written.keys() <= tensors.keys()
    save_file({**tensors, **written}, target / "model.safetensors", {"format": "pt"})
    return target


def plain_weights(engine: Any) -> dict[str, Array]:
    """Weights [O,I] that the engine holds quantised, in float32, by their modules' names; of MLX a tied embedding too."""
    if hasattr(engine, "body"):
        from lorafit.engines.mlx.matrix import matrix_of

        found = {name: _of_mlx(matrix_of(module)) for name, module in engine.body.modules.items()}
        if hasattr(engine.body, "embedding"):
            found["model.embed_tokens"] = _of_mlx(engine.body.embedding)
    else:
        found = {name: _of_torch(layer.base) for name, layer in engine.layers.items()}
    return {name: weight for name, weight in found.items() if weight is not None}


def _of_mlx(matrix: Any) -> Array | None:
    import mlx.core as mx

    return None if matrix.scales is None else np.array(matrix.rows(mx.arange(matrix.outputs)).astype(mx.float32))


def _of_torch(base: Any) -> Array | None:
    """bitsandbytes' layers: NF4, or LLM.int8, whose numbers move from the weight to the layer at the first product."""
    weight: Any = base.weight
    if getattr(weight, "quant_state", None) is not None:
        import bitsandbytes

        return np.asarray(bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).float())
    if type(base).__name__ != "Linear8bitLt":
        return None
    held = weight if weight.CB is not None else base.state
    return np.asarray(held.CB.float() * held.SCB[:, None] / 127)
