"""How many seconds will it take? Operations and bytes of a step over what the machine does in a second.

docs/speed-model.md has the terms with their sources and measured errors. Letters as in memory.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lorafit.models.spec import ModelSpec
from lorafit.planner.fast_path import FAST
from lorafit.planner.memory import BYTES, Layout, adapter_parameters, layer_bytes, weights_bytes
from lorafit.planner.throughput import DeviceRates

DISK_BYTES_PER_SECOND = 0.5e9
START_SECONDS = 6.0  # libraries, checks, first step
# Seconds to unpack a number, over the time that writing it to main memory takes. Assumed; the CPU's fast path unpacks into
# a buffer that caches hold: measured, 46 to 51 GB/s where a copy in memory made 19.
UNPACK_SLOWNESS = {"cpu": 6.0, "cuda": 1.5, "mps": 4.0}
FAST_UNPACK_SLOWNESS = 0.4
# Between processes on one machine: gloo over the loopback, NCCL over PCIe. Assumed.
EXCHANGE_BYTES_PER_SECOND = {"cpu": 1e9, "cuda": 10e9, "mps": 1e9}
TOUCHES = 3  # times that what a layer keeps is read or written outside of products


@dataclass(frozen=True)
class MicroBatchShape:
    """A micro-batch by its lengths: T tokens, N targets, and the squares of its samples' lengths summed."""

    tokens: int
    targets: int
    squares: int


def linear_flops(spec: ModelSpec, share: MicroBatchShape) -> float:
    """2 W forward and 2 W backward to the inputs, a token: frozen weights get no gradient."""
    return 4.0 * spec.linear_weights * share.tokens


def lora_flops(spec: ModelSpec, layout: Layout, share: MicroBatchShape) -> float:
    """2 A forward; 2 A to the inputs and 2 A to the weights backward."""
    return 6.0 * adapter_parameters(spec, layout.lora_r, layout.lora_targets) * share.tokens


def head_flops(spec: ModelSpec, share: MicroBatchShape) -> float:
    """Logits and the gradient back, at targets only."""
    return 4.0 * spec.hidden * spec.vocab * share.targets


def attention_flops(spec: ModelSpec, share: MicroBatchShape) -> float:
    """Scores and sums over half of S x S forward (2 nh hd S^2 in all), two and a half times that backward."""
    return 7.0 * spec.layers * spec.heads * spec.head_dim * share.squares


def recompute_flops(spec: ModelSpec, layout: Layout, share: MicroBatchShape) -> float:
    """The forward pass of the layers that compute it again."""
    adapter = adapter_parameters(spec, layout.lora_r, layout.lora_targets)
    attention = 2.0 * spec.layers * spec.heads * spec.head_dim * share.squares
    forward = 2.0 * (spec.linear_weights + adapter) * share.tokens + attention
    return forward * min(layout.recompute, spec.layers) / spec.layers


def flops(spec: ModelSpec, layout: Layout, share: MicroBatchShape) -> float:
    """Operations of a micro-batch, forward and backward."""
    fixed = linear_flops(spec, share) + lora_flops(spec, layout, share) + head_flops(spec, share)
    return fixed + attention_flops(spec, share) + recompute_flops(spec, layout, share)


def product_seconds(spec: ModelSpec, rate: DeviceRates, operations: float, tokens: int) -> float:
    """`operations` at the rate that matrices of so many rows and so wide reach."""
    filling = (1 + rate.half_rate_tokens / max(tokens, 1)) * (1 + rate.half_rate_width / spec.hidden)
    return operations / rate.flops * filling


def _passes(spec: ModelSpec, layout: Layout) -> float:
    """How often each weight is read for a micro-batch."""
    return 2.0 + min(layout.recompute, spec.layers) / spec.layers


def traffic_bytes(spec: ModelSpec, layout: Layout, share: MicroBatchShape) -> float:
    """Bytes moved outside of products: activations, head weights once a chunk and way, base weights once a pass."""
    one = layer_bytes(spec, layout) / max(layout.tokens, 1) * spec.layers
    chunks = -(-share.targets // layout.loss_chunk)
    head = 2.0 * chunks * spec.hidden * spec.vocab * BYTES[layout.precision]
    weights = _passes(spec, layout) * weights_bytes(spec, layout.precision, layout.quantization)
    return TOUCHES * one * share.tokens + head + weights


def unpack_seconds(spec: ModelSpec, layout: Layout, rate: DeviceRates) -> float:
    """Quantised weights are unpacked once a pass; MLX multiplies them as they are."""
    if layout.quantization == "none" or layout.engine == "mlx":
        return 0.0
    written = spec.linear_weights * BYTES[layout.precision] * _passes(spec, layout)
    in_cache = layout.device == "cpu" and layout.path == FAST
    return written * (FAST_UNPACK_SLOWNESS if in_cache else UNPACK_SLOWNESS[layout.device]) / rate.bytes


def micro_batch_seconds(spec: ModelSpec, layout: Layout, rate: DeviceRates, share: MicroBatchShape) -> float:
    """Forward and backward of one micro-batch."""
    launches = rate.launch_seconds * spec.layers * _passes(spec, layout)
    moved = 0.0 if layout.path == FAST else traffic_bytes(spec, layout, share) / rate.bytes
    products = product_seconds(spec, rate, flops(spec, layout, share), share.tokens)
    return products + moved + unpack_seconds(spec, layout, rate) + launches + gather_seconds(spec, layout)


def gather_seconds(spec: ModelSpec, layout: Layout) -> float:
    """Where processes hold the base together, each gets the others' part of every layer once a pass."""
    if layout.shards == 1:
        return 0.0
    others = weights_bytes(spec, layout.precision, layout.quantization) * (layout.shards - 1) / layout.shards
    return _passes(spec, layout) * others / EXCHANGE_BYTES_PER_SECOND[layout.device]


def exchange_seconds(spec: ModelSpec, layout: Layout) -> float:
    """Gradients in float32 summed over all processes: in a ring each sends and gets 2 (n - 1) / n of them."""
    gradients = 4.0 * adapter_parameters(spec, layout.lora_r, layout.lora_targets)
    sent = gradients * 2 * (layout.processes - 1) / layout.processes
    return sent / EXCHANGE_BYTES_PER_SECOND[layout.device]


def update_seconds(spec: ModelSpec, layout: Layout, rate: DeviceRates) -> float:
    """The optimizer and the norm: adapter, gradient and moments read and written."""
    return 32.0 * adapter_parameters(spec, layout.lora_r, layout.lora_targets) / rate.bytes


def step_seconds(spec: ModelSpec, layout: Layout, rate: DeviceRates, shares: Sequence[MicroBatchShape]) -> float:
    """One optimizer step over its micro-batches."""
    work = sum(micro_batch_seconds(spec, layout, rate, share) for share in shares)
    return work + exchange_seconds(spec, layout) + update_seconds(spec, layout, rate)


def evaluation_seconds(spec: ModelSpec, layout: Layout, rate: DeviceRates, share: MicroBatchShape) -> float:
    """Forward only: a third to a half of a training pass, without recompute."""
    plain = flops(spec, layout, share) - recompute_flops(spec, layout, share)
    return product_seconds(spec, rate, plain / 2, layout.tokens) + rate.launch_seconds * spec.layers


def load_seconds(spec: ModelSpec) -> float:
    """Reading the files, and what every start costs."""
    return START_SECONDS + spec.weight_bytes / DISK_BYTES_PER_SECOND


def save_seconds(spec: ModelSpec, layout: Layout) -> float:
    """Adapter and moments, written and flushed."""
    return 0.2 + 12.0 * adapter_parameters(spec, layout.lora_r, layout.lora_targets) / (DISK_BYTES_PER_SECOND / 2)
