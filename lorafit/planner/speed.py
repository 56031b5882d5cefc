"""Predicted seconds of a step, an evaluation, loading and saving: operations and bytes over the device's rates.

docs/speed-model.md has the terms with their sources and measured errors. Letters as in memory.py, and W elements of all
linears, A parameters of the adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lorafit.models.spec import ModelSpec
from lorafit.planner.fast_path import FAST
from lorafit.planner.memory import BYTES, Layout, adapter_parameters, layer_bytes, weights_bytes
from lorafit.planner.throughput import DeviceRates

DISK_BYTES_PER_SECOND = 0.5e9
START_SECONDS = 6.0  # libraries, checks, first step
# Time to unpack a quantized weight over the time to write it to main memory: assumed. The CPU's fast path unpacks into
# a buffer that fits the cache: measured 46 to 51 GB/s, where a copy in main memory reached 19 GB/s.
UNPACK_SLOWNESS = {"cpu": 6.0, "cuda": 1.5, "mps": 4.0}
FAST_UNPACK_SLOWNESS = 0.4
# Between processes on one machine: gloo over loopback, NCCL over PCIe. Assumed.
EXCHANGE_BYTES_PER_SECOND = {"cpu": 1e9, "cuda": 10e9, "mps": 1e9}
ACTIVATION_PASSES = 3  # times that a kept activation is read or written outside of matmuls


@dataclass(frozen=True)
class MicroBatchShape:
    """Size of a micro-batch: T tokens, N targets, and the sum of the squared sample lengths."""

    tokens: int
    targets: int
    squares: int


def linear_flops(spec: ModelSpec, share: MicroBatchShape) -> float:
    """Return the operations of the frozen linears: per token 2 W forward and 2 W backward, for input gradients only."""
    return 4.0 * computed_weights(spec) * share.tokens


def computed_weights(spec: ModelSpec) -> float:
    """Return the weights that multiply each token in the layers: all linears, and the chosen ones of the experts."""
    return spec.linear_weights + spec.expert_weights * spec.active_experts


def attended_pairs(spec: ModelSpec, share: MicroBatchShape) -> float:
    """Return the pairs of positions in all layers, twice, since the upper half of S x S is not computed.

    A layer with a window of w tokens computes 2 S w - w^2 of S^2, for samples of the mean length. A layer without
    attention computes none.
    """
    mean = share.squares / max(share.tokens, 1)
    window = min(spec.window or mean, mean)
    inside = share.tokens * (2 * window - window**2 / max(mean, 1))
    windowed = sum(kind == "window" for kind in spec.kinds)
    return (spec.attention_layers - windowed) * share.squares + windowed * inside


def lora_flops(spec: ModelSpec, layout: Layout, share: MicroBatchShape) -> float:
    """Return the operations of the LoRA matmuls: per token 2 A forward, 2 A for input and 2 A for weight gradients."""
    return 6.0 * adapter_parameters(spec, layout.lora_r, layout.lora_targets) * share.tokens


def head_flops(spec: ModelSpec, share: MicroBatchShape) -> float:
    """Return the operations of the LM head: logits and their input gradient, at targets only."""
    return 4.0 * spec.hidden * spec.vocab * share.targets


def attention_flops(spec: ModelSpec, share: MicroBatchShape) -> float:
    """Return the operations of attention.

    The forward computes scores and weighted sums over the causal half of S x S: 2 nh hd S^2. The backward takes 2.5 times
    as many.
    """
    return 7.0 * spec.heads * spec.head_dim * attended_pairs(spec, share)


def recompute_flops(spec: ModelSpec, layout: Layout, share: MicroBatchShape) -> float:
    """Return the operations of the forward pass that gradient checkpointing repeats."""
    adapter = adapter_parameters(spec, layout.lora_r, layout.lora_targets)
    attention = 2.0 * spec.heads * spec.head_dim * attended_pairs(spec, share)
    forward = 2.0 * (computed_weights(spec) + adapter) * share.tokens + attention
    return forward * min(layout.recompute, spec.layers) / spec.layers


def flops(spec: ModelSpec, layout: Layout, share: MicroBatchShape) -> float:
    """Return the operations of a micro-batch, forward and backward."""
    fixed = linear_flops(spec, share) + lora_flops(spec, layout, share) + head_flops(spec, share)
    return fixed + attention_flops(spec, share) + recompute_flops(spec, layout, share)


def matmul_seconds(spec: ModelSpec, rate: DeviceRates, operations: float, tokens: int) -> float:
    """Return the seconds of `operations` in matmuls over `tokens` rows.

    Few tokens and a small hidden size lower the rate (half_rate_tokens, half_rate_width).
    """
    filling = (1 + rate.half_rate_tokens / max(tokens, 1)) * (1 + rate.half_rate_width / spec.hidden)
    return operations / rate.flops * filling


def _passes(spec: ModelSpec, layout: Layout) -> float:
    """Return how often each weight is read per micro-batch: forward, backward, and the share of recomputed layers."""
    return 2.0 + min(layout.recompute, spec.layers) / spec.layers


def traffic_bytes(spec: ModelSpec, layout: Layout, share: MicroBatchShape) -> float:
    """Return the bytes moved for activations and weights.

    Activations move ACTIVATION_PASSES times. The weights of the LM head move once per chunk, forward and backward; the base weights
    once per pass.
    """
    one = layer_bytes(spec, layout) / max(layout.tokens, 1) * spec.layers
    chunks = -(-share.targets // layout.loss_chunk)
    head = 2.0 * chunks * spec.hidden * spec.vocab * BYTES[layout.precision]
    weights = _passes(spec, layout) * weights_bytes(spec, layout.precision, layout.quantization)
    return ACTIVATION_PASSES * one * share.tokens + head + weights


def unpack_seconds(spec: ModelSpec, layout: Layout, rate: DeviceRates) -> float:
    """Return the seconds to unpack quantized weights, once per pass; 0 with MLX, which multiplies packed weights."""
    if layout.quantization == "none" or layout.engine == "mlx":
        return 0.0
    written = spec.linear_weights * BYTES[layout.precision] * _passes(spec, layout)
    in_cache = layout.device == "cpu" and layout.path == FAST
    return written * (FAST_UNPACK_SLOWNESS if in_cache else UNPACK_SLOWNESS[layout.device]) / rate.bytes


def micro_batch_seconds(spec: ModelSpec, layout: Layout, rate: DeviceRates, share: MicroBatchShape) -> float:
    """Return the seconds of forward and backward of one micro-batch.

    On the fast path, memory traffic is not added: the measured efficiency includes it.
    """
    launches = rate.launch_seconds * spec.layers * _passes(spec, layout)
    moved = 0.0 if layout.path == FAST else traffic_bytes(spec, layout, share) / rate.bytes
    products = matmul_seconds(spec, rate, flops(spec, layout, share), share.tokens)
    return products + moved + unpack_seconds(spec, layout, rate) + launches + gather_seconds(spec, layout)


def gather_seconds(spec: ModelSpec, layout: Layout) -> float:
    """Return the seconds of the all-gather of a sharded base: each process receives the other shards once per pass."""
    if layout.shards == 1:
        return 0.0
    others = weights_bytes(spec, layout.precision, layout.quantization) * (layout.shards - 1) / layout.shards
    return _passes(spec, layout) * others / EXCHANGE_BYTES_PER_SECOND[layout.device]


def exchange_seconds(spec: ModelSpec, layout: Layout) -> float:
    """Return the seconds of the all-reduce of the float32 gradients.

    In a ring of n processes, each sends and receives 2 (n - 1) / n of all gradients.
    """
    gradients = 4.0 * adapter_parameters(spec, layout.lora_r, layout.lora_targets)
    sent = gradients * 2 * (layout.processes - 1) / layout.processes
    return sent / EXCHANGE_BYTES_PER_SECOND[layout.device]


def update_seconds(spec: ModelSpec, layout: Layout, rate: DeviceRates) -> float:
    """Return the seconds of gradient norm and optimizer update, 32 A bytes.

    They read and write adapter, gradient and optimizer state.
    """
    return 32.0 * adapter_parameters(spec, layout.lora_r, layout.lora_targets) / rate.bytes


def step_seconds(spec: ModelSpec, layout: Layout, rate: DeviceRates, shares: Sequence[MicroBatchShape]) -> float:
    """Return the seconds of one optimizer step over its micro-batches."""
    work = sum(micro_batch_seconds(spec, layout, rate, share) for share in shares)
    return work + exchange_seconds(spec, layout) + update_seconds(spec, layout, rate)


def evaluation_seconds(spec: ModelSpec, layout: Layout, rate: DeviceRates, share: MicroBatchShape) -> float:
    """Return the seconds of one micro-batch of an evaluation: the forward pass only.

    A forward pass takes a third to a half of the operations of a training pass without recompute; half is assumed. It
    also reads, gathers and unpacks the weights once, where that training pass does so twice.
    """
    return micro_batch_seconds(spec, replace(layout, recompute=0), rate, share) / 2


def load_seconds(spec: ModelSpec) -> float:
    """Return the seconds to start the process and read the weight files."""
    return START_SECONDS + spec.weight_bytes / DISK_BYTES_PER_SECOND


def save_seconds(spec: ModelSpec, layout: Layout) -> float:
    """Return the seconds to write and flush adapter and optimizer state, 12 A bytes."""
    return 0.2 + 12.0 * adapter_parameters(spec, layout.lora_r, layout.lora_targets) / (DISK_BYTES_PER_SECOND / 2)
