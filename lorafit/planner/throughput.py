"""Rates of a device for one layout: matmul rate, memory bandwidth, and the share that an engine reaches."""

from dataclasses import dataclass

from lorafit.hardware.catalogue import cpus
from lorafit.hardware.catalogue.find import chip_in
from lorafit.hardware.detect import Machine
from lorafit.planner.fast_path import FAST
from lorafit.planner.memory import Layout

GIGA, TERA = 1e9, 1e12
# Share of the stated rate that an engine reaches in the matmuls of training. CPU: measured against 1024 x 1024 matmuls
# (generic path 56-60%; fast path fitted with the two half-rate constants below). CUDA: from published LoRA
# runs on ten cards (docs/speed-model.md). Apple: assumed from matmuls alone (55-70% of the table). MLX's 4-bit matmuls lose a third.
EFFICIENCY = {("torch", "cpu"): 0.60, ("torch", "cuda"): 0.60, ("torch", "mps"): 0.45, ("mlx", "mps"): 0.60}
FAST_EFFICIENCY = 1.0
# Hidden size at which the fast path reaches half its rate: in narrow layers, attention, adapters and everything between
# matmuls weigh more. Fitted to 18 passes of three models (hidden 576, 896, 2048), RMS error 5%, docs/log.md.
FAST_HALF_RATE_WIDTH = 220
# Share of the efficiency with the "lean" allocator, which gets new memory for every large block. Median of 14 steps
# (docs/speed-model.md).
LEAN_SHARE = 0.91
QUANTISED_SHARE = {("mlx", "mps"): 0.67}  # of the efficiency, in matmuls with packed weights
# Launch overhead in seconds per layer and pass, for dozens of kernels. CPU measured, others assumed.
LAUNCH_SECONDS = {"cpu": 0.3e-3, "cuda": 0.4e-3, "mps": 1.0e-3}
# Tokens of a micro-batch at which matmuls reach half their rate, since small matmuls do not fill the device. CPU fitted;
# CUDA from others' runs of 512 to 8192 tokens (docs/speed-model.md), rounded; MPS assumed.
HALF_RATE_TOKENS = {"cpu": 50, "cuda": 100, "mps": 150}
UNKNOWN_GPU = {"cuda": (15.0, 400.0), "mps": (3.0, 100.0)}  # TFLOP/s in half precision and GB/s, conservative


@dataclass(frozen=True)
class DeviceRates:
    """Rates of a device per second. `source`: catalogue | measured | guess."""

    flops: float  # in the matmuls of training
    bytes: float  # to and from its memory
    launch_seconds: float  # per layer and pass
    half_rate_tokens: int
    source: str
    half_rate_width: int = 0


def rates(machine: Machine, layout: Layout, core_gflops: float | None = None) -> DeviceRates:
    """Return the rates of `machine` for `layout`.

    `core_gflops`: measured float32 matmul rate of this machine's CPU, all cores together; None: use the catalogue's rate.
    """
    if layout.device == "cpu":
        return _cpu(machine, layout, core_gflops)
    gpu = machine.gpu(layout.device)
    chip = chip_in(gpu) if gpu else None
    share = EFFICIENCY.get((layout.engine, layout.device), 0.5)
    if layout.quantization != "none":
        share *= QUANTISED_SHARE.get((layout.engine, layout.device), 1.0)
    if chip is None:
        teraflops, gigabytes = UNKNOWN_GPU[layout.device]
        source = "guess"
    else:
        # The chip computes a precision that it lacks in hardware at its float32 rate.
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
