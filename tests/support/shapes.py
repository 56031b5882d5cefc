"""A model's shape, for tests that need no weights."""

from lorafit.models.spec import ModelSpec
from lorafit.models.text_tensors import Linear

ATTENTION = {"q": (2048, 2048), "k": (2048, 512), "v": (2048, 512), "o": (2048, 2048)}
MLP = {"gate": (2048, 8192), "up": (2048, 8192), "down": (8192, 2048)}


def llama_1b() -> ModelSpec:
    """Return the shape of Llama-3.2-1B."""
    linears = [
        Linear(f"model.layers.{layer}.{part}.{name}_proj", *size)
        for layer in range(16)
        for part, sizes in (("self_attn", ATTENTION), ("mlp", MLP))
        for name, size in sizes.items()
    ]
    return ModelSpec(
        model_type="llama",
        layers=16,
        hidden=2048,
        intermediate=8192,
        heads=32,
        kv_heads=8,
        head_dim=64,
        vocab=128256,
        tied=True,
        parameters=1_235_814_400,
        weight_bytes=2_471_628_800,
        linears=linears,
    )
