"""Faults in mixes of adapters and in exports for MLX and vLLM, and honest exports of these kinds."""

from exports.faults import arguments, result, scaled, swapped, without
from exports.trials import Plant, Trial
from lorafit.exporters import mix, vllm
from lorafit.exporters.mlx import export as mlx_export

TWO = {"mix": {"llama": 0.7, "llama, another run": 0.4}}
# mlx_lm computes the other families of honest.py otherwise (a window that it ignores), or reads their own files otherwise.
BITS = {16: ("llama", "qwen2", "qwen3", "phi3"), 8: ("llama", "qwen3"), 4: ("llama, large",)}
MIX = [
    Trial("an adapter of the mix is dropped (merged)", "llama", "merged", TWO,
          Plant(mix, "side_by_side", arguments(lambda deltas, *more: (deltas[:1], *more)))),
    Trial("the weights of the mix are ignored (merged)", "llama", "merged", TWO,
          Plant(mix, "side_by_side",
                arguments(lambda deltas, *more: ([one._replace(scale=2.0) for one in deltas], *more)))),
]  # fmt: skip
MLX = [
    Trial(f"{name} (mlx, {source})", source, "mlx", {"bits": 16}, Plant(mlx_export, "deltas", result(change)))
    for name, change, source in (
        ("the base is exported", lambda _found: {}, "llama"),
        ("half of alpha", scaled(0.5), "qwen2"),
        ("one layer has no delta", without("layers.1.mlp.up_proj"), "llama"),
        ("two layers change places", swapped("layers.0.", "layers.1."), "qwen3"),
    )
]
VLLM = [
    Trial("scales are lost (vllm, llama, ranks)", "llama, ranks", "vllm", {},
          Plant(vllm, "side_by_side",
                arguments(lambda deltas, *more: ([one._replace(scale=1.0) for one in deltas], *more)))),
]  # fmt: skip
OTHERS = [*MIX, *MLX, *VLLM]
HONEST_OTHERS = [
    *(Trial("", source, "mlx", {"bits": bits}) for bits, sources in BITS.items() for source in sources),
    Trial("", "llama", "gguf", TWO | {"quantize": "q8_0"}),
    Trial("", "llama, rslora", "vllm"),
    Trial("", "qwen3", "vllm"),
]
