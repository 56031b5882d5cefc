"""How many bytes will training take at its peak? One function a term; nothing here decides anything.

The formula for activations was checked against what hooks count (0.02% off) for transformers' decoder layers with LoRA
on all seven projections. Letters: T tokens of a micro-batch, H hidden, I intermediate, V vocabulary, r rank,
nh/nk heads and key-value heads of size hd.
"""

from dataclasses import dataclass

from lorafit.modelspec import Linear, ModelSpec
from lorafit.units import MIB

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}  # of a number
# Python, PyTorch and its libraries before any model. CPU measured; CUDA (context, workspace) and MPS (graphs) assumed.
BASE_BYTES = {"cpu": 420 * MIB, "cuda": 700 * MIB, "mps": 600 * MIB}
# What the allocator keeps unused: bytes, and a share of the activations. CPU (glibc) measured, the others assumed.
SLACK_BYTES = {"cpu": 256 * MIB, "cuda": 0, "mps": 0}
SLACK_SHARE = {"cpu": 0.2, "cuda": 0.15, "mps": 0.25}


@dataclass(frozen=True)
class Layout:
    """How a model would be trained: all that decides about memory besides the model's shape."""

    device: str
    precision: str
    quantization: str
    optimizer: str
    lora_r: int
    lora_targets: str
    tokens: int  # T, of the largest micro-batch
    longest: int  # tokens of the longest sample in it
    recompute: int  # layers
    loss_chunk: int  # target tokens


def targeted(spec: ModelSpec, lora_targets: str) -> list[Linear]:
    """The linears that get an adapter: all, or those whose name ends in one of the given ones."""
    if lora_targets == "all-linear":
        return spec.linears
    names = tuple(f".{name.strip()}" for name in lora_targets.split(",") if name.strip())
    return [linear for linear in spec.linears if f".{linear.name}".endswith(names)]


def adapter_parameters(spec: ModelSpec, lora_r: int, lora_targets: str) -> int:
    """A [r, in] and B [out, r] on every targeted linear."""
    return sum(lora_r * (linear.in_features + linear.out_features) for linear in targeted(spec, lora_targets))


def weights_bytes(spec: ModelSpec, precision: str, quantization: str) -> int:
    """The base. Its linears, quantised: 4 bits and a float32 per 64 numbers, or 8 bits and a float32 per row."""
    if quantization == "none":
        return spec.parameters * BYTES[precision]
    linears = sum(linear.in_features * linear.out_features for linear in spec.linears)
    rows = sum(linear.out_features for linear in spec.linears)
    packed = linears // 2 + linears // 64 * 4 if quantization == "4bit" else linears + rows * 4
    return packed + (spec.parameters - linears) * BYTES[precision]


def adapter_bytes(parameters: int, optimizer: str) -> int:
    """Adapter, gradient and two moments, fp32; 8-bit moments have two float32 scales a block of 256."""
    if optimizer == "paged_adamw_8bit":
        return parameters * (4 + 4 + 2) + parameters // 256 * 8
    return parameters * 16


def layer_bytes(spec: ModelSpec, layout: Layout) -> int:
    """What one layer keeps for its backward pass over T tokens."""
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    size = BYTES[layout.precision]
    # Norms compute in fp32 whatever the precision, and keep what they computed with.
    norms = 4 * spec.hidden * 4
    rest = (4 * spec.intermediate + 2 * q + 2 * kv) * size
    lora = 7 * layout.lora_r * 4
    statistics = (spec.heads + 2) * 4
    return layout.tokens * (norms + rest + lora + statistics)


def attention_bytes(spec: ModelSpec, layout: Layout) -> int:
    """Attention weights that one layer keeps: none with fused attention; MPS trains without, and keeps [nh, S, S]."""
    if layout.device != "mps":
        return 0
    return spec.heads * layout.tokens * layout.longest * BYTES[layout.precision]


def activation_bytes(spec: ModelSpec, layout: Layout) -> int:
    """All layers' activations: a recomputed layer keeps only its input; one layer is at work while it goes backward."""
    layer = layer_bytes(spec, layout) + attention_bytes(spec, layout)
    kept = spec.layers - min(layout.recompute, spec.layers)
    inputs = layout.tokens * spec.hidden * BYTES[layout.precision] * (spec.layers - kept)
    return layer * (kept + 1) + inputs


def dequantized_bytes(spec: ModelSpec, layout: Layout) -> int:
    """The largest quantised linear, unpacked while it multiplies."""
    if layout.quantization == "none":
        return 0
    largest = max((linear.in_features * linear.out_features for linear in spec.linears), default=0)
    return largest * BYTES[layout.precision]


def loss_bytes(spec: ModelSpec, loss_chunk: int) -> int:
    """Logits, their log-softmax and the gradients of both for one chunk of target tokens, fp32: 3.8 were measured."""
    return 4 * loss_chunk * spec.vocab * 4


def terms(spec: ModelSpec, layout: Layout) -> dict[str, int]:
    """Peak bytes by term, as named in messages."""
    activations = activation_bytes(spec, layout)
    return {
        "framework": BASE_BYTES[layout.device],
        "weights": weights_bytes(spec, layout.precision, layout.quantization),
        "adapter": adapter_bytes(adapter_parameters(spec, layout.lora_r, layout.lora_targets), layout.optimizer),
        "activations": activations,
        "unpacking": dequantized_bytes(spec, layout),
        "loss": loss_bytes(spec, layout.loss_chunk),
        "allocator": SLACK_BYTES[layout.device] + int(activations * SLACK_SHARE[layout.device]),
    }


def peak_bytes(spec: ModelSpec, layout: Layout) -> int:
    """The predicted peak: the sum of the terms."""
    return sum(terms(spec, layout).values())
