"""Predicted peak memory of training in bytes: one function per term, no decisions.

docs/memory-model.md has the formula, source and measured error of each term (`python benchmarks/plan_accuracy.py`).
Letters: T tokens of a micro-batch, S tokens of its longest sample, N tokens in the loss (targets), L layers, H hidden
size, I intermediate size, V vocabulary, r rank, nh/nk query and key-value heads of size hd.
"""

from dataclasses import dataclass, replace

from lorafit.models.lora_targets import matching_names
from lorafit.models.spec import ModelSpec
from lorafit.models.text_tensors import Linear
from lorafit.planner.fast_path import FAST, GENERIC
from lorafit.units import MIB

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}  # per element

# Fitted or assumed constants. On a CPU they refer to the memory of the process, elsewhere to that of the device.
# Python, PyTorch, its libraries and the tokenizer before any model is loaded. The CPU value is measured. The values for
# CUDA (context, workspace), MPS (graphs) and MLX (kernels) are assumed.
BASE_BYTES = {"cpu": 400 * MIB, "cuda": 700 * MIB, "mps": 600 * MIB}
BITSANDBYTES_BYTES = 45 * MIB  # measured
# Memory that the allocator holds and no tensor uses. DEVICE_SLACK: share of activations and temporaries, assumed.
# SLACK: glibc's, fitted, by profile (engines/allocator.py) and code path. Each entry: bytes, share of the kept
# activations, share of the activations that gradient checkpointing saves (freeing these leaves holes).
DEVICE_SLACK = {"cuda": 0.15, "mps": 0.25}
SLACK = {
    "lean": {FAST: (24 * MIB, 0.01, 0.0), GENERIC: (24 * MIB, 0.01, 0.0)},
    "default": {FAST: (60 * MIB, 0.15, 0.09), GENERIC: (40 * MIB, 0.35, 0.42)},
    "fast": {FAST: (40 * MIB, 0.18, 0.06), GENERIC: (40 * MIB, 0.27, 0.2)},
}
SLACK_8BIT = (40 * MIB, 0.44, 0.48)  # all profiles but lean: the generic path, and every matmul unpacks its weights
# Temporaries of one layer's backward over its kept activations, generic path: measured with and without recompute
# (Llama-3.2-1B, 512 tokens).
GENERIC_WORK = 1.8
# Elements of a weight that a matmul takes at once, in low_bit_linear.py and the LM head: 4 MB in float32, which nearly
# fits in a core's cache; and of a 4-bit weight. The kernels import these.
WEIGHT_BLOCK, PACKED_BLOCK = 1 << 20, 1 << 21
SCRATCH_BYTES = {"none": 4 * WEIGHT_BLOCK, "4bit": 4 * PACKED_BLOCK}  # float32 buffer for one unpacked block


@dataclass(frozen=True)
class Layout:
    """One way to train a model: everything that determines memory and speed, except the model's architecture."""

    device: str
    precision: str
    quantization: str
    optimizer: str
    lora_r: int
    lora_targets: str
    tokens: int  # T of the largest micro-batch
    longest: int  # S of the largest micro-batch
    recompute: int  # layers with gradient checkpointing
    loss_chunk: int  # tokens in the loss whose logits are computed at once
    engine: str = "torch"
    path: str = GENERIC
    target_share: float = 1.0  # N / T
    shards: int = 1  # processes over which the base weights are sharded (FSDP)
    processes: int = 1  # data-parallel processes
    allocator: str = "default"  # profile of glibc's malloc: fast | lean | default

    @property
    def targets(self) -> int:
        """N, tokens in the loss of the largest micro-batch."""
        return round(self.tokens * self.target_share)

    @property
    def size(self) -> int:
        """Bytes per activation element: a CPU computes in fp32 whatever the weights are stored in."""
        return 4 if self.device == "cpu" else BYTES[self.precision]


def targeted(spec: ModelSpec, lora_targets: str) -> list[Linear]:
    """Return the linears that get an adapter: all, or those whose name ends in one of the names in `lora_targets`."""
    names = set(matching_names([linear.name for linear in spec.linears], lora_targets))
    return [linear for linear in spec.linears if linear.name in names]


def adapter_parameters(spec: ModelSpec, lora_r: int, lora_targets: str) -> int:
    """Return the number of trainable parameters: A [r, in] and B [out, r] on every targeted linear."""
    if lora_targets == "all-linear":  # a fast case, since the search calls this thousands of times
        return lora_r * spec.rank1_parameters
    return sum(lora_r * (linear.in_features + linear.out_features) for linear in targeted(spec, lora_targets))


def framework_bytes(layout: Layout) -> int:
    """Return the bytes of the interpreter and the libraries before any model is loaded."""
    quantises = layout.device == "cpu" and layout.quantization != "none"
    return BASE_BYTES[layout.device] + (BITSANDBYTES_BYTES if quantises else 0)


def weights_bytes(spec: ModelSpec, precision: str, quantization: str) -> int:
    """Return the bytes of the base weights.

    4-bit linears take half a byte per weight, one scale byte per 64 weights, and one float32 per 256 scale bytes. 8-bit
    linears take one byte per weight and one float32 per row. MLX's two 16-bit values per 64 weights take 5% more than the
    4-bit formula.
    """
    if spec.packed is not None:  # the files are quantized for MLX
        return spec.packed.size + spec.packed.others * BYTES[precision]
    if quantization == "none":
        return spec.parameters * BYTES[precision]
    linears = spec.stored_linear_weights
    four, eight = linears // 2 + linears // 64 + linears // 64 // 256 * 4, linears + spec.total_out_features * 4
    packed = four if quantization == "4bit" else eight
    return packed + (spec.parameters - linears) * BYTES[precision]


def base_bytes(spec: ModelSpec, layout: Layout) -> int:
    """Return the bytes of the base weights on one process.

    A sharded process holds its shard, two gathered layers (the current one and the one being prefetched) and the LM head.
    """
    whole = weights_bytes(spec, layout.precision, layout.quantization)
    if layout.shards == 1:
        return whole
    gathered = 2 * spec.linear_weights // max(spec.layers, 1) + spec.vocab * spec.hidden
    return whole // layout.shards + gathered * BYTES[layout.precision]


def adapter_bytes(parameters: int, optimizer: str) -> int:
    """Return the bytes of adapter, gradient and AdamW's optimizer state (two moments), in fp32.

    8-bit moments have one float32 scale each per block of 256.
    """
    if optimizer == "paged_adamw_8bit":
        return parameters * (4 + 4 + 2) + parameters // 256 * 8
    return parameters * 16


def _widths(spec: ModelSpec) -> tuple[int, int]:
    """Return nh hd and nk hd."""
    return spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim


def _ranks(spec: ModelSpec, layout: Layout) -> int:
    """Return r times the number of adapted linears per layer."""
    return layout.lora_r * len(targeted(spec, layout.lora_targets)) // max(spec.layers, 1)


def layer_bytes(spec: ModelSpec, layout: Layout) -> int:
    """Return the bytes of activations that one layer keeps for its backward over T tokens.

    Generic: 4H + 4I + 7r + 2 nh hd + 2 nk hd + nh + 2 elements per token (transformers' layers with lorafit's LoRA; hooks
    on every saved tensor counted 0.02% more). The k experts of a token save k (3 I + H) elements, and a state space
    `state_values`. If layers differ, this is their mean.
    Fast: 2H + 2I + 7r + 2 nh hd + 2 nk hd + nh + 2 elements per token (the fields of LayerActivations and Recomputable in
    engines/torch/packed/layer.py).
    """
    q, kv = _widths(spec)
    lora, statistics = _ranks(spec, layout), spec.heads + 2
    if layout.path == FAST:
        floats = 2 * spec.hidden + 2 * spec.intermediate + 2 * q + 2 * kv
        return layout.tokens * (floats * layout.size + (lora + statistics) * 4)
    # Norms compute in fp32 at any precision and keep fp32 tensors for their backward.
    attention = ((2 * q + 2 * kv) * layout.size + spec.heads * 4) * spec.attention_layers
    state = spec.state_values * 4 * spec.state_layers
    rest = (4 * spec.mlp_width + spec.expert_values + lora) * layout.size
    mixers = (attention + state) // spec.layers
    return layout.tokens * (4 * spec.hidden * 4 + rest + mixers + 2 * 4)


def largest_layer_bytes(spec: ModelSpec, layout: Layout) -> int:
    """Return the bytes of activations of the layer with the most: a state space saves more than attention."""
    if not spec.state_values or spec.state_layers == spec.layers:
        return layer_bytes(spec, layout)
    more = spec.state_values * 4 - (sum(_widths(spec)) * 2 * layout.size + spec.heads * 4)
    share = (spec.layers - spec.state_layers) / spec.layers
    return layer_bytes(spec, layout) + max(round(layout.tokens * more * share), 0)


def recomputed_bytes(spec: ModelSpec, layout: Layout) -> int:
    """Return the bytes of activations that one layer with gradient checkpointing keeps.

    Both paths keep the layer's input. The fast path also keeps the attention output, and does not recompute attention.
    """
    if layout.path == FAST:
        floats = spec.hidden + _widths(spec)[0] + spec.heads + layout.lora_r
        return layout.tokens * floats * layout.size
    return layout.tokens * spec.hidden * layout.size


def attention_bytes(spec: ModelSpec, layout: Layout) -> int:
    """Return the bytes of attention weights that one layer keeps.

    Fused attention keeps none. PyTorch on MPS trains without fused attention and keeps [nh, T, S].
    """
    if layout.device != "mps" or layout.engine == "mlx":
        return 0
    return spec.heads * layout.tokens * layout.longest * BYTES[layout.precision]


def _last_layer_bytes(spec: ModelSpec, layout: Layout) -> int:
    """Return the bytes that the last layer keeps on the fast path: attention output and MLP only at the N targets."""
    q, kv = _widths(spec)
    everywhere = (spec.hidden + q + 2 * kv) * layout.size * layout.tokens
    at_targets = (spec.hidden + 2 * spec.intermediate + q) * layout.size * layout.targets
    return everywhere + at_targets + (_ranks(spec, layout) + spec.heads + 2) * 4 * layout.tokens


def activation_bytes(spec: ModelSpec, layout: Layout) -> int:
    """Return the bytes of activations that all layers keep."""
    layer = layer_bytes(spec, layout) + attention_bytes(spec, layout)
    recomputed = min(layout.recompute, spec.layers)
    kept = layer * (spec.layers - recomputed)
    if layout.path == FAST and recomputed < spec.layers:
        kept += _last_layer_bytes(spec, layout) - layer
    return kept + recomputed_bytes(spec, layout) * recomputed


def work_bytes(spec: ModelSpec, layout: Layout) -> int:
    """Return the bytes of temporaries and gradients of the layer whose backward runs."""
    layer = largest_layer_bytes(spec, layout) + attention_bytes(spec, layout)
    if layout.engine == "mlx":  # no fused attention backward: scores, weights and their gradients of one layer
        return layer + 3 * spec.heads * layout.longest**2 * layout.size
    if layout.path == GENERIC:  # all activations of one layer exist, with or without recompute
        return int(GENERIC_WORK * layer)
    # [T, I]: gradients of gate, up and their product; silu of gate. [T, H]: gradient of the output; recomputed norm.
    return layout.tokens * (4 * spec.intermediate + 2 * spec.hidden) * layout.size


def recompute_bytes(spec: ModelSpec, layout: Layout) -> int:
    """Return the bytes of activations that one layer recomputes before its backward."""
    if layout.path == GENERIC and layout.engine != "mlx":
        return 0  # included in GENERIC_WORK
    return layer_bytes(spec, layout) + attention_bytes(spec, layout) - recomputed_bytes(spec, layout)


def activation_peak(spec: ModelSpec, layout: Layout) -> tuple[int, int]:
    """Return the bytes of kept activations and of temporaries at the moment when their sum is largest.

    The first `recompute` layers are the ones that recompute. The peak is either at the backward of the last layer (or the
    loss just before it), or at the backward of the last layer that recomputes. In the second case, all later layers have
    freed their activations.
    """
    kept, work = activation_bytes(spec, layout), work_bytes(spec, layout)
    recomputed = min(layout.recompute, spec.layers)
    again = recompute_bytes(spec, layout) if recomputed else 0
    if layout.engine == "mlx":  # MLX chooses its order of computation, so assume that both maxima coincide
        return kept, max(work + again, loss_bytes(spec, layout))
    first, later = max(work, loss_bytes(spec, layout)), recomputed_bytes(spec, layout) * recomputed
    return max((kept, first), (later, work + again), key=sum)


def loss_bytes(spec: ModelSpec, layout: Layout) -> int:
    """Return the bytes of temporaries of the loss for one chunk of targets.

    PyTorch: logits and softmax of one block of the vocabulary, the softmax-weighted and the target rows of the LM head,
    and the gradient at all N targets. MLX: logits, softmax and gradient over the whole vocabulary.
    """
    if layout.engine == "mlx":
        return 4 * layout.loss_chunk * spec.vocab * 4
    chunk, block = min(layout.loss_chunk, layout.targets), WEIGHT_BLOCK // spec.hidden
    return 4 * (chunk * (2 * block + 3 * spec.hidden) + 2 * layout.targets * spec.hidden)


def unpack_buffer_bytes(spec: ModelSpec, layout: Layout) -> int:
    """Return the bytes of the buffer for unpacked weights during a matmul.

    The buffer holds the largest quantized linear. The fast path, and weights stored in 16 bits on a CPU, unpack in blocks
    (SCRATCH_BYTES). MLX multiplies packed weights and needs no buffer.
    """
    stored = layout.quantization != "none" or layout.precision != "fp32"
    if layout.engine == "mlx" or not stored:
        return 0
    if layout.quantization == "none" or layout.path == FAST:
        return SCRATCH_BYTES[layout.quantization] if layout.device == "cpu" else 0
    return spec.largest_linear * layout.size


def batch_bytes(spec: ModelSpec, layout: Layout) -> int:
    """Return the bytes of the micro-batch: inputs, rotary tables, first and last hidden states.

    Token ids, positions and mask, as numpy arrays and as tensors, take 33 bytes per token.
    """
    return layout.tokens * (33 + 2 * spec.head_dim * 4 + 2 * spec.hidden * layout.size)


def slack_bytes(spec: ModelSpec, layout: Layout, kept: int, work: int) -> int:
    """Return the bytes that the allocator holds and no tensor uses.

    `kept`: bytes of kept activations. `work`: bytes of temporaries.
    """
    if layout.device != "cpu":
        return int((kept + work) * DEVICE_SLACK[layout.device])
    always, share, lost = SLACK[layout.allocator][layout.path]
    if layout.quantization == "8bit" and layout.allocator != "lean":
        always, share, lost = SLACK_8BIT
    if layout.quantization == "4bit" and layout.path == GENERIC and layout.allocator != "lean":
        always += spec.largest_linear * layout.size  # every matmul unpacks its whole weight into a new buffer
    given_up = activation_bytes(spec, replace(layout, recompute=0)) - kept if layout.recompute else 0
    return always + int(share * kept + lost * given_up)


def terms(spec: ModelSpec, layout: Layout) -> dict[str, int]:
    """Return the bytes of each term at the peak; reasons.term_names() has the names for the user."""
    activations, work = activation_peak(spec, layout)
    batch = batch_bytes(spec, layout)
    return {
        "framework": framework_bytes(layout),
        "weights": base_bytes(spec, layout),
        "adapter": adapter_bytes(adapter_parameters(spec, layout.lora_r, layout.lora_targets), layout.optimizer),
        "activations": activations,
        "work": work,
        "unpacking": unpack_buffer_bytes(spec, layout),
        "batch": batch,
        "allocator": slack_bytes(spec, layout, activations, work),
    }


def peak_bytes(spec: ModelSpec, layout: Layout) -> int:
    """Return the predicted peak memory in bytes: the sum of the terms."""
    return sum(terms(spec, layout).values())
