"""Apple Silicon chips from M1 to M5: memory sizes, bandwidth and float32 rate; half precision has the same rate.

The figures are for the version with the most GPU cores; the rate of other versions is proportional to their cores. An M4
Ultra was never sold. On the machine itself, the engine reads the share of memory that Metal gives to the GPU. For a
machine described by name, the plan uses the lowest observed share (USABLE).
"""

from lorafit.hardware.catalogue.chip import Chip
from lorafit.messages import noted

SOURCE = noted(
    "bandwidth: Apple's technical specifications; FP32 rate: cores x 128 lanes x 2 x "
    "clock; clocks measured by the community"
)
GUESS = noted(
    "bandwidth: Apple's technical specifications; FP32 rate: estimated as 1.1 times the M4's per core, not measured"
)

# name: GPU cores, GB/s, FP32 TFLOP/s, memory sizes in GB
_SOLD: dict[str, tuple[int, float, float, tuple[int, ...]]] = {
    "M1": (8, 68, 2.6, (8, 16)),
    "M1 Pro": (16, 200, 5.2, (16, 32)),
    "M1 Max": (32, 400, 10.4, (32, 64)),
    "M1 Ultra": (64, 800, 20.8, (64, 128)),
    "M2": (10, 100, 3.6, (8, 16, 24)),
    "M2 Pro": (19, 200, 6.8, (16, 32)),
    "M2 Max": (38, 400, 13.5, (32, 64, 96)),
    "M2 Ultra": (76, 800, 27.2, (64, 128, 192)),
    "M3": (10, 100, 4.1, (8, 16, 24)),
    "M3 Pro": (18, 150, 7.4, (18, 36)),
    "M3 Max": (40, 400, 14.2, (36, 48, 64, 96, 128)),
    "M3 Ultra": (80, 819, 28.4, (96, 256, 512)),
    "M4": (10, 120, 4.6, (16, 24, 32)),
    "M4 Pro": (20, 273, 9.2, (24, 48, 64)),
    "M4 Max": (40, 546, 18.4, (36, 48, 64, 128)),
    "M5": (10, 153, 5.1, (16, 24, 32)),
    "M5 Pro": (20, 307, 10.1, (24, 48, 64)),
    "M5 Max": (40, 614, 20.2, (36, 48, 64, 128)),
}

APPLE = [
    Chip(
        f"Apple {name}", "mps", memory, bandwidth, {"fp32": rate, "bf16": rate, "fp16": rate},
        GUESS if name.startswith("M5") else SOURCE, cores=cores,
    )
    for name, (cores, bandwidth, rate, memory) in _SOLD.items()
]  # fmt: skip

# (memory up to GB, share of the memory that Metal recommends). Observed, in GB and GiB: 2/3 up to 32 GB (M1 Pro and M4
# with 16: 10.67; 24: 16.0; 32: 21.33), 3/4 above (96: 72.0). Newer macOS versions give more (16: 11.84; 64: 51.84;
# 128: 107.5). Hence plans for a Mac described by name are conservative.
USABLE = ((32, 2 / 3), (10_000, 3 / 4))


def usable_share(memory_gb: float) -> float:
    """Return the share of a Mac's memory that its GPU may use."""
    return next(share for most, share in USABLE if memory_gb <= most)
