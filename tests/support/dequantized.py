"""The dequantized weights of a quantized base model, written as an ordinary float32 model folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lorafit.models.weight_files import weight_files

Array = NDArray[Any]


def plain_model(engine: Any, folder: Path, target: Path) -> Path:
    """Write the model in `folder` to `target` in float32, with the dequantized weights of `engine`. Return `target`."""
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
    """Return the weights [O, I] that the engine stores quantized, dequantized to float32, by module name.

    With MLX, a quantized embedding is included.
    """
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
    """Return the dequantized weight of a bitsandbytes layer, NF4 or LLM.int8; None for any other layer.

    The first matmul moves the values of LLM.int8 from the weight to the layer's state.
    """
    weight: Any = base.weight
    if getattr(weight, "quant_state", None) is not None:
        import bitsandbytes

        return np.asarray(bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).float().cpu())
    if type(base).__name__ != "Linear8bitLt":
        return None
    held = weight if weight.CB is not None else base.state
    return np.asarray((held.CB.float() * held.SCB[:, None] / 127).cpu())
