"""Which way will an engine compute: its own packed decoder, or the model's own layers? Told from the shape alone.

The engine decides by what it has loaded, and compares both ways on a tiny input; this is what it will come to.
"""

from lorafit.messages import _
from lorafit.models.spec import ModelSpec

FAST, GENERIC = "fast", "generic"
LLAMAS = {"llama", "mistral", "qwen2", "qwen3", "smollm3", "ministral", "olmo", "helium"}  # dense decoders of one shape
PARTS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def why_generic(spec: ModelSpec, longest: int, quantization: str, device: str) -> str | None:
    """Why the fast path will not be taken for samples of at most `longest` tokens, in words; None when it will."""
    parts = [linear.name.rpartition(".")[2] for linear in spec.linears]
    if spec.model_type not in LLAMAS or set(parts) != PARTS or len(parts) != len(PARTS) * spec.layers:
        return _("the fast path knows Llama's shape, and this model differs from it")
    if spec.activation != "silu":
        return _("the fast path knows Llama's shape, and this model differs from it")
    if spec.window is not None and spec.window < longest:
        return _("the fast path lets every token see the whole sample before it")
    if quantization == "8bit":
        return _("the fast path computes in float32, with weights in 32, 16 or 4 bits")
    if device != "cpu":
        return _("the fast path has not been tried on {device}").format(device=device)
    return None


def path_of(spec: ModelSpec, longest: int, quantization: str, device: str) -> str:
    """fast | generic."""
    return FAST if why_generic(spec, longest, quantization, device) is None else GENERIC
