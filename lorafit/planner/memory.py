"""How many bytes will training take at its peak? One function a term; nothing here decides anything.

docs/memory-model.md has each term's formula, its source and its measured error (`python benchmarks/plan_accuracy.py`).
Letters: T tokens of a micro-batch, S of its longest sample, N targets, L layers, H hidden, I intermediate, V vocabulary,
r rank, nh/nk heads and key-value heads of size hd.
"""

from dataclasses import dataclass, replace

from lorafit.models.spec import Linear, ModelSpec
from lorafit.planner.fast_path import FAST, GENERIC
from lorafit.units import MIB

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}  # of a number

# The constants that are fitted or assumed, by what is measured: a process on the CPU, a device otherwise.
# Python, PyTorch, its libraries and the tokenizer before any model. CPU measured; CUDA (context, workspace) and MPS
# (graphs) assumed, as are MLX's kernels.
BASE_BYTES = {"cpu": 400 * MIB, "cuda": 700 * MIB, "mps": 600 * MIB}
BITSANDBYTES_BYTES = 45 * MIB  # measured
# What the allocator keeps and nobody uses. The devices' own: a share of what comes and goes, assumed. glibc's, by profile
# (engines/allocator.py) and path, fitted: bytes, a share of what layers keep, and of what they gave up by recomputing,
# since it leaves holes.
DEVICE_SLACK = {"cuda": 0.15, "mps": 0.25}
SLACK = {
    "lean": {FAST: (24 * MIB, 0.01, 0.0), GENERIC: (24 * MIB, 0.01, 0.0)},
    "default": {FAST: (60 * MIB, 0.15, 0.09), GENERIC: (40 * MIB, 0.35, 0.42)},
    "fast": {FAST: (40 * MIB, 0.18, 0.06), GENERIC: (40 * MIB, 0.27, 0.2)},
}
SLACK_8BIT = (40 * MIB, 0.44, 0.48)  # not lean: generic too, and every product unpacks its weights
GENERIC_WORK = 1.8  # of what a layer keeps, at work: measured with and without recompute (Llama-3.2-1B, 512 tokens)
LOGITS_BLOCK = 1 << 20  # numbers of the head that are multiplied at once (engines/torch/stored.py)
SCRATCH_BYTES = {"none": 4 * MIB, "4bit": 8 * MIB}  # in which weights are unpacked block by block (the same file)


@dataclass(frozen=True)
class Layout:
    """How a model would be trained: all that decides about memory and speed besides the model's shape."""

    device: str
    precision: str
    quantization: str
    optimizer: str
    lora_r: int
    lora_targets: str
    tokens: int  # T, of the largest micro-batch
    longest: int  # S, of the longest sample in it
    recompute: int  # layers
    loss_chunk: int  # target tokens
    engine: str = "torch"
    path: str = GENERIC
    target_share: float = 1.0  # N / T
    shards: int = 1  # processes that hold the base together
    processes: int = 1  # that share every step
    allocator: str = "default"  # glibc's profile

    @property
    def targets(self) -> int:
        return round(self.tokens * self.target_share)

    @property
    def size(self) -> int:
        """Bytes of a number in an activation: a CPU stores in bf16 and computes in float32."""
        return 4 if self.device == "cpu" else BYTES[self.precision]


def targeted(spec: ModelSpec, lora_targets: str) -> list[Linear]:
    """The linears that get an adapter: all, or those whose name ends in one of the given ones."""
    if lora_targets == "all-linear":
        return spec.linears
    names = tuple(f".{name.strip()}" for name in lora_targets.split(",") if name.strip())
    return [linear for linear in spec.linears if f".{linear.name}".endswith(names)]


def adapter_parameters(spec: ModelSpec, lora_r: int, lora_targets: str) -> int:
    """A [r, in] and B [out, r] on every targeted linear."""
    if lora_targets == "all-linear":  # asked for thousands of times while a plan is sought
        return lora_r * spec.all_sides
    return sum(lora_r * (linear.in_features + linear.out_features) for linear in targeted(spec, lora_targets))


def framework_bytes(layout: Layout) -> int:
    """Interpreter and libraries before any model."""
    quantises = layout.device == "cpu" and layout.quantization != "none"
    return BASE_BYTES[layout.device] + (BITSANDBYTES_BYTES if quantises else 0)


def weights_bytes(spec: ModelSpec, precision: str, quantization: str) -> int:
    """The base. Its linears, quantised: 4 bits and, per 64 numbers, a byte that is itself scaled by a float32 per 256 of
    them; or 8 bits and a float32 per row. (MLX's two 16-bit numbers per 64 come to 5% more.)"""
    if spec.packed is not None:  # by MLX, in its files
        return spec.packed.size + spec.packed.others * BYTES[precision]
    if quantization == "none":
        return spec.parameters * BYTES[precision]
    linears = spec.linear_weights
    four, eight = linears // 2 + linears // 64 + linears // 64 // 256 * 4, linears + spec.all_rows * 4
    packed = four if quantization == "4bit" else eight
    return packed + (spec.parameters - linears) * BYTES[precision]


def held_bytes(spec: ModelSpec, layout: Layout) -> int:
    """The base as one process holds it: whole; or its share, two layers (at work, and on its way) and the head gathered."""
    whole = weights_bytes(spec, layout.precision, layout.quantization)
    if layout.shards == 1:
        return whole
    gathered = 2 * spec.linear_weights // max(spec.layers, 1) + spec.vocab * spec.hidden
    return whole // layout.shards + gathered * BYTES[layout.precision]


def adapter_bytes(parameters: int, optimizer: str) -> int:
    """Adapter, gradient and two moments, fp32; 8-bit moments have two float32 scales a block of 256."""
    if optimizer == "paged_adamw_8bit":
        return parameters * (4 + 4 + 2) + parameters // 256 * 8
    return parameters * 16


def _widths(spec: ModelSpec) -> tuple[int, int]:
    """nh hd and nk hd."""
    return spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim


def _ranks(spec: ModelSpec, layout: Layout) -> int:
    """r for every adapter in a layer."""
    return layout.lora_r * len(targeted(spec, layout.lora_targets)) // max(spec.layers, 1)


def layer_bytes(spec: ModelSpec, layout: Layout) -> int:
    """What one layer keeps for its backward pass over T tokens.

    Generic: 4H + 4I + 7r + 2 nh hd + 2 nk hd + nh + 2 numbers a token (transformers with our LoRA; hooks counted 0.02% more).
    Fast: 2H + 2I + 7r + 2 nh hd + 2 nk hd + nh + 2 (the fields of packed/layer.py's Saved and Rest).
    """
    q, kv = _widths(spec)
    lora, statistics = _ranks(spec, layout), spec.heads + 2
    if layout.path == FAST:
        floats = 2 * spec.hidden + 2 * spec.intermediate + 2 * q + 2 * kv
        return layout.tokens * (floats * layout.size + (lora + statistics) * 4)
    # Norms compute in fp32 whatever the precision, and keep what they computed with.
    norms = 4 * spec.hidden * 4
    rest = (4 * spec.intermediate + 2 * q + 2 * kv + lora) * layout.size
    return layout.tokens * (norms + rest + statistics * 4)


def recomputed_bytes(spec: ModelSpec, layout: Layout) -> int:
    """What a layer keeps that recomputes: its input; the fast path attention's output too, which it does not make again."""
    if layout.path == FAST:
        floats = spec.hidden + _widths(spec)[0] + spec.heads + layout.lora_r
        return layout.tokens * floats * layout.size
    return layout.tokens * spec.hidden * layout.size


def attention_bytes(spec: ModelSpec, layout: Layout) -> int:
    """Attention weights that one layer keeps: none with fused attention; torch's MPS trains without, and keeps [nh, T, S]."""
    if layout.device != "mps" or layout.engine == "mlx":
        return 0
    return spec.heads * layout.tokens * layout.longest * BYTES[layout.precision]


def _last_layer_bytes(spec: ModelSpec, layout: Layout) -> int:
    """The fast path computes the last layer's attention output and MLP at the targets alone."""
    q, kv = _widths(spec)
    everywhere = (spec.hidden + q + 2 * kv) * layout.size * layout.tokens
    at_targets = (spec.hidden + 2 * spec.intermediate + q) * layout.size * layout.targets
    return everywhere + at_targets + (_ranks(spec, layout) + spec.heads + 2) * 4 * layout.tokens


def activation_bytes(spec: ModelSpec, layout: Layout) -> int:
    """What all layers keep."""
    layer = layer_bytes(spec, layout) + attention_bytes(spec, layout)
    recomputed = min(layout.recompute, spec.layers)
    kept = layer * (spec.layers - recomputed)
    if layout.path == FAST and recomputed < spec.layers:
        kept += _last_layer_bytes(spec, layout) - layer
    return kept + recomputed_bytes(spec, layout) * recomputed


def work_bytes(spec: ModelSpec, layout: Layout) -> int:
    """The layer that goes backward: its gradients."""
    layer = layer_bytes(spec, layout) + attention_bytes(spec, layout)
    if layout.engine == "mlx":  # its attention has no fused backward: scores, weights and their gradients of one layer
        return layer + 3 * spec.heads * layout.longest**2 * layout.size
    if layout.path == GENERIC:  # with or without recompute one layer's whole state is there
        return int(GENERIC_WORK * layer)
    # Gradients at gate, up and their product, silu of gate; at the layer's output, and the norm made again.
    return layout.tokens * (4 * spec.intermediate + 2 * spec.hidden) * layout.size


def recompute_bytes(spec: ModelSpec, layout: Layout) -> int:
    """What a layer that recomputes computes again before it goes backward."""
    if layout.path == GENERIC and layout.engine != "mlx":
        return 0  # GENERIC_WORK has it
    return layer_bytes(spec, layout) + attention_bytes(spec, layout) - recomputed_bytes(spec, layout)


def moving_bytes(spec: ModelSpec, layout: Layout) -> tuple[int, int]:
    """What layers keep, and what is at work, when both are most: as the last layer goes backward (or the loss before it),
    or as the last one does that recomputes, the first layers, when those after it have given up what they kept."""
    kept, work = activation_bytes(spec, layout), work_bytes(spec, layout)
    recomputed = min(layout.recompute, spec.layers)
    again = recompute_bytes(spec, layout) if recomputed else 0
    if layout.engine == "mlx":  # in which order it computes is its own affair
        return kept, max(work + again, loss_bytes(spec, layout))
    first, later = max(work, loss_bytes(spec, layout)), recomputed_bytes(spec, layout) * recomputed
    return max((kept, first), (later, work + again), key=sum)


def loss_bytes(spec: ModelSpec, layout: Layout) -> int:
    """One chunk of targets. PyTorch: a block of the vocabulary's logits and shares, the expected rows of the head and the
    targets' own, besides the gradient at all targets. MLX: logits, softmax and gradient over the whole vocabulary."""
    if layout.engine == "mlx":
        return 4 * layout.loss_chunk * spec.vocab * 4
    chunk, block = min(layout.loss_chunk, layout.targets), LOGITS_BLOCK // spec.hidden
    return 4 * (chunk * (2 * block + 3 * spec.hidden) + 2 * layout.targets * spec.hidden)


def dequantized_bytes(spec: ModelSpec, layout: Layout) -> int:
    """The largest quantised linear, unpacked while it multiplies; blocks of one on the fast path, and of one stored in
    16 bits; MLX needs neither."""
    stored = layout.quantization != "none" or layout.precision != "fp32"
    if layout.engine == "mlx" or not stored:
        return 0
    if layout.quantization == "none" or layout.path == FAST:
        return SCRATCH_BYTES[layout.quantization] if layout.device == "cpu" else 0
    return spec.largest_linear * layout.size


def batch_bytes(spec: ModelSpec, layout: Layout) -> int:
    """The micro-batch as ids, positions and mask (numpy and tensors: 33 a token), rotary tables, first and last hidden states."""
    return layout.tokens * (33 + 2 * spec.head_dim * 4 + 2 * spec.hidden * layout.size)


def slack_bytes(spec: ModelSpec, layout: Layout, kept: int, work: int) -> int:
    """What the allocator keeps and nobody uses, where layers keep `kept` bytes and `work` bytes are at work."""
    if layout.device != "cpu":
        return int((kept + work) * DEVICE_SLACK[layout.device])
    always, share, lost = SLACK[layout.allocator][layout.path]
    if layout.quantization == "8bit" and layout.allocator != "lean":
        always, share, lost = SLACK_8BIT
    if layout.quantization == "4bit" and layout.path == GENERIC and layout.allocator != "lean":
        always += spec.largest_linear * layout.size  # unpacked whole, and anew each time
    given_up = activation_bytes(spec, replace(layout, recompute=0)) - kept if layout.recompute else 0
    return always + int(share * kept + lost * given_up)


def terms(spec: ModelSpec, layout: Layout) -> dict[str, int]:
    """Peak bytes by term, as named in messages."""
    activations, work = moving_bytes(spec, layout)
    batch = batch_bytes(spec, layout)
    return {
        "framework": framework_bytes(layout),
        "weights": held_bytes(spec, layout),
        "adapter": adapter_bytes(adapter_parameters(spec, layout.lora_r, layout.lora_targets), layout.optimizer),
        "activations": activations,
        "work": work,
        "unpacking": dequantized_bytes(spec, layout),
        "batch": batch,
        "allocator": slack_bytes(spec, layout, activations, work),
    }


def peak_bytes(spec: ModelSpec, layout: Layout) -> int:
    """The predicted peak: the sum of the terms."""
    return sum(terms(spec, layout).values())
