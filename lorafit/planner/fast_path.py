"""Prediction of the PyTorch engine's code path from the model's architecture alone.

`FAST` is lorafit's padding-free decoder, `GENERIC` the layers of transformers. The engine decides on the loaded model and
compares both paths on a tiny input; this module predicts that decision.
"""

from lorafit.messages import _
from lorafit.models.spec import ModelSpec

FAST, GENERIC = "fast", "generic"
LLAMAS = {"llama", "mistral", "qwen2", "qwen3", "smollm3", "ministral", "olmo", "helium"}  # Llama's architecture
MLX_DECODERS = {"llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text"}  # lorafit's decoder in MLX
PARTS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def generic_reason(cause: str, device: str = "") -> str:
    """Return the text for why a model takes the generic path; the engine gives the same texts.

    `cause`: architecture | window | precision | device.
    """
    return {
        "architecture": _("the fast path supports only Llama's architecture, which this model does not have"),
        "window": _("the fast path has no sliding-window attention, which this model uses for samples this long"),
        "precision": _("the fast path computes in float32, from 32-, 16- or 4-bit weights only"),
        "device": _("the fast path has not been tested on {device}"),
    }[cause].format(device=device)


def why_generic(spec: ModelSpec, longest: int, quantization: str, device: str) -> str | None:
    """Return why the engine will not use the fast path for samples of up to `longest` tokens, or None if it will."""
    parts = [linear.name.rpartition(".")[2] for linear in spec.linears]
    if spec.model_type not in LLAMAS or set(parts) != PARTS or len(parts) != len(PARTS) * spec.layers:
        return generic_reason("architecture")
    if spec.activation != "silu":
        return generic_reason("architecture")
    if spec.window is not None and spec.window < longest:
        return generic_reason("window")
    if quantization == "8bit":
        return generic_reason("precision")
    if device != "cpu":
        return generic_reason("device", device)
    return None


def can_recompute(spec: ModelSpec, engine: str) -> bool:
    """Return whether layers can recompute activations. With MLX, only those of lorafit's own decoder can."""
    return engine != "mlx" or (spec.text_type or spec.model_type) in MLX_DECODERS


def path_of(spec: ModelSpec, longest: int, quantization: str, device: str) -> str:
    """Return the predicted code path: FAST or GENERIC."""
    return FAST if why_generic(spec, longest, quantization, device) is None else GENERIC
