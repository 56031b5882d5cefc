"""Architectures of public models by model ID, from their config.json files.

They are used when neither the disk nor a hub provides the model's own config.json; a plan made from them says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lorafit.models.positions import Positions
from lorafit.models.spec import ModelSpec
from lorafit.models.text_tensors import Linear


@dataclass(frozen=True)
class Shape:
    """The fields of a dense decoder's config.json that determine its size."""

    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    bias: bool = False  # on q, k and v
    qk_norm: bool = False
    norms: int = 2  # per layer, of the hidden size
    window: int | None = None  # tokens of sliding-window attention
    activation: str = "silu"
    positions: Positions | None = None


SHAPES = {
    "meta-llama/Llama-3.2-1B-Instruct": Shape("llama", 16, 2048, 8192, 32, 8, 64, 128256, True),
    "meta-llama/Llama-3.2-3B-Instruct": Shape("llama", 28, 3072, 8192, 24, 8, 128, 128256, True),
    "meta-llama/Llama-3.1-8B-Instruct": Shape("llama", 32, 4096, 14336, 32, 8, 128, 128256, False),
    "meta-llama/Llama-3.3-70B-Instruct": Shape("llama", 80, 8192, 28672, 64, 8, 128, 128256, False),
    "meta-llama/Llama-2-7b-chat-hf": Shape("llama", 32, 4096, 11008, 32, 32, 128, 32000, False),
    "meta-llama/Llama-2-13b-chat-hf": Shape("llama", 40, 5120, 13824, 40, 40, 128, 32000, False),
    "Qwen/Qwen2.5-0.5B-Instruct": Shape("qwen2", 24, 896, 4864, 14, 2, 64, 151936, True, bias=True),
    "Qwen/Qwen2.5-1.5B-Instruct": Shape("qwen2", 28, 1536, 8960, 12, 2, 128, 151936, True, bias=True),
    "Qwen/Qwen2.5-3B-Instruct": Shape("qwen2", 36, 2048, 11008, 16, 2, 128, 151936, True, bias=True),
    "Qwen/Qwen2.5-7B-Instruct": Shape("qwen2", 28, 3584, 18944, 28, 4, 128, 152064, False, bias=True),
    "Qwen/Qwen2.5-14B-Instruct": Shape("qwen2", 48, 5120, 13824, 40, 8, 128, 152064, False, bias=True),
    "Qwen/Qwen2.5-32B-Instruct": Shape("qwen2", 64, 5120, 27648, 40, 8, 128, 152064, False, bias=True),
    "Qwen/Qwen3-0.6B": Shape("qwen3", 28, 1024, 3072, 16, 8, 128, 151936, True, qk_norm=True),
    "Qwen/Qwen3-1.7B": Shape("qwen3", 28, 2048, 6144, 16, 8, 128, 151936, True, qk_norm=True),
    "Qwen/Qwen3-4B": Shape("qwen3", 36, 2560, 9728, 32, 8, 128, 151936, True, qk_norm=True),
    "Qwen/Qwen3-8B": Shape("qwen3", 36, 4096, 12288, 32, 8, 128, 151936, False, qk_norm=True),
    "Qwen/Qwen3-14B": Shape("qwen3", 40, 5120, 17408, 40, 8, 128, 151936, False, qk_norm=True),
    "Qwen/Qwen3-32B": Shape("qwen3", 64, 5120, 25600, 64, 8, 128, 151936, False, qk_norm=True),
    "mistralai/Mistral-7B-Instruct-v0.3": Shape("mistral", 32, 4096, 14336, 32, 8, 128, 32768, False),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Shape(
        "llama", 30, 576, 1536, 9, 3, 64, 49152, True, positions=Positions(8192, "rope")
    ),
    "HuggingFaceTB/SmolLM2-360M-Instruct": Shape("llama", 32, 960, 2560, 15, 5, 64, 49152, True),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": Shape("llama", 24, 2048, 8192, 32, 32, 64, 49152, True),
    "google/gemma-2-2b-it": Shape("gemma2", 26, 2304, 9216, 8, 4, 256, 256000, True, norms=4, window=4096, activation="gelu"),
    "google/gemma-2-9b-it": Shape("gemma2", 42, 3584, 14336, 16, 8, 256, 256000, True, norms=4, window=4096, activation="gelu"),
    "google/gemma-3-1b-it": Shape(
        "gemma3_text", 26, 1152, 6912, 4, 1, 256, 262144, True, qk_norm=True, norms=4, window=512, activation="gelu"
    ),
}  # fmt: skip
DEMO = "HuggingFaceTB/SmolLM2-135M-Instruct"


def known_spec(name: str) -> ModelSpec | None:
    """Return the spec of the model `name` from the catalogue, or None.

    A name matches by its full ID, or by the part after the slash, since mirrors have other owners.
    """
    wanted = DEMO if name == "demo" else name
    short = _short(wanted)
    shape = SHAPES.get(wanted) or next((s for full, s in SHAPES.items() if _short(full) == short), None)
    return None if shape is None else spec_of(shape)


def _short(name: str) -> str:
    return name.rpartition("/")[2].lower().replace("meta-llama", "llama")


def spec_of(shape: Shape) -> ModelSpec:
    """Return the spec that read_spec() would read from the model's files in bf16."""
    linears = [linear for layer in range(shape.layers) for linear in _linears(shape, layer)]
    return ModelSpec(
        model_type=shape.model_type,
        layers=shape.layers,
        hidden=shape.hidden,
        intermediate=shape.intermediate,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab=shape.vocab,
        tied=shape.tied,
        parameters=(parameters := _parameters(shape, linears)),
        weight_bytes=2 * parameters,
        linears=linears,
        window=shape.window,
        activation=shape.activation,
        positions=shape.positions,
    )


def _linears(shape: Shape, layer: int) -> Iterator[Linear]:
    q, kv, h, i = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.hidden, shape.intermediate
    attention = {"q": (h, q), "k": (h, kv), "v": (h, kv), "o": (q, h)}
    mlp = {"gate": (h, i), "up": (h, i), "down": (i, h)}
    for part, sizes in (("self_attn", attention), ("mlp", mlp)):
        for name, size in sizes.items():
            yield Linear(f"model.layers.{layer}.{part}.{name}_proj", *size)


def _parameters(shape: Shape, linears: list[Linear]) -> int:
    embeddings = shape.vocab * shape.hidden * (1 if shape.tied else 2)
    biases = (shape.heads + 2 * shape.kv_heads) * shape.head_dim if shape.bias else 0
    norms = shape.norms * shape.hidden + (2 * shape.head_dim if shape.qk_norm else 0)
    matrices = sum(linear.in_features * linear.out_features for linear in linears)
    return embeddings + matrices + shape.layers * (biases + norms) + shape.hidden
