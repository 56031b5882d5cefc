"""How fast is the machine? Products a second, memory's bandwidth and what of both an engine gets out of it."""

from dataclasses import dataclass

from lorafit.hardware.catalogue import cpus
from lorafit.hardware.catalogue.find import chip_of
from lorafit.hardware.detect import Machine
from lorafit.planner.fast_path import FAST
from lorafit.planner.memory import Layout

GIGA, TERA = 1e9, 1e12
# Share of the stated rate that an engine reaches in training's products. CPU: measured against products of 1024 x 1024
# (generic 56-60%; fast path fitted with both fillings below). CUDA: what a published LoRA run on an A100 comes to within
# a fifth. Apple: assumed from products alone (55-70% of the table); MLX's 4-bit products lose a third of it.
EFFICIENCY = {("torch", "cpu"): 0.60, ("torch", "cuda"): 0.60, ("torch", "mps"): 0.45, ("mlx", "mps"): 0.60}
FAST_EFFICIENCY = 1.0
# Hidden size at which the fast path runs at half its rate: attention, adapters and what lies between products weigh more
# in narrow layers. Fitted to 18 passes of three models 576, 896 and 2048 wide, 5% (root mean square), docs/log.md.
FAST_HALF_RATE_WIDTH = 220
# Of the efficiency: memory is got anew for every large block. The middle of 14 steps, docs/speed-model.md.
LEAN_SHARE = 0.91
QUANTISED_SHARE = {("mlx", "mps"): 0.67}  # of the efficiency, where products take packed weights
# Seconds before a layer's kernels run, forward or backward: dozens of launches. Assumed, CPU measured.
LAUNCH_SECONDS = {"cpu": 0.3e-3, "cuda": 0.4e-3, "mps": 1.0e-3}
# Tokens of a micro-batch at which products run at half their rate: smaller matrices fill the device less. CPU fitted, others assumed.
HALF_RATE_TOKENS = {"cpu": 50, "cuda": 400, "mps": 150}
UNKNOWN_GPU = {"cuda": (15.0, 400.0), "mps": (3.0, 100.0)}  # TFLOP/s in half precision and GB/s: careful


@dataclass(frozen=True)
class DeviceRates:
    """What a device does in a second, and where that is from: catalogue | measured | guess."""

    flops: float  # in training's products
    bytes: float
    launch_seconds: float  # a layer and pass
    half_rate_tokens: int
    source: str
    half_rate_width: int = 0


def rates(machine: Machine, layout: Layout, core_gflops: float | None = None) -> DeviceRates:
    """The rates of `machine` for `layout`. `core_gflops`: a product measured on this machine's CPU, all cores together."""
    if layout.device == "cpu":
        return _cpu(machine, layout, core_gflops)
    gpu = machine.gpu(layout.device)
    chip = chip_of(gpu.name) if gpu else None
    share = EFFICIENCY.get((layout.engine, layout.device), 0.5)
    if layout.quantization != "none":
        share *= QUANTISED_SHARE.get((layout.engine, layout.device), 1.0)
    if chip is None:
        teraflops, gigabytes = UNKNOWN_GPU[layout.device]
        source = "guess"
    else:
        # A precision that the chip does not compute in hardware runs as float32.
        teraflops = chip.teraflops.get(layout.precision, chip.teraflops["fp32"]) * chip.sustained
        gigabytes, source = chip.gigabytes_per_second, "catalogue"
    return DeviceRates(
        teraflops * TERA * share,
        gigabytes * GIGA * 0.7,
        LAUNCH_SECONDS[layout.device],
        HALF_RATE_TOKENS[layout.device],
        source,
    )


def _cpu(machine: Machine, layout: Layout, gflops: float | None) -> DeviceRates:
    is_fast = layout.path == FAST
    share = FAST_EFFICIENCY if is_fast else EFFICIENCY["torch", "cpu"]
    share *= LEAN_SHARE if layout.allocator == "lean" else 1.0
    width = FAST_HALF_RATE_WIDTH if is_fast else 0
    rate = (gflops or cpus.core_gflops(machine.chip) * machine.cores) / machine.shared_by
    moved = cpus.BYTES_PER_SECOND / machine.shared_by
    source = "measured" if gflops else "catalogue"
    return DeviceRates(rate * GIGA * share, moved, LAUNCH_SECONDS["cpu"], HALF_RATE_TOKENS["cpu"], source, width)
