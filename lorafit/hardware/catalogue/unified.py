"""NVIDIA chips whose GPU shares the main memory: the Jetson family and GB10 (DGX Spark).

Their drivers report no memory of the GPU, and one name for several Jetson modules. The memory tells which module it is.
"""

from lorafit.hardware.catalogue.chip import Chip, rates_of
from lorafit.messages import noted

ORIN_SOURCE = noted(
    "NVIDIA Jetson technical briefs; 16-bit rate: a quarter of the stated sparse INT8 rate of the GPU, an estimate; "
    "share at the power limit: estimated"
)
FP4_SOURCE = noted(
    "NVIDIA data sheets; 16-bit rate: an eighth of the stated sparse FP4 rate, an estimate; share at the power limit: "
    "estimated"
)
SUSTAINED = 0.75  # assumed

# Orin NX and Orin Nano: in Super mode (JetPack 6.2).
# name, the driver's name, compute capability, memory in GB, GB/s, FP32 TFLOP/s, half-precision TFLOP/s, source
_SOLD: tuple[tuple[str, str, float, int, float, float, float, str], ...] = (
    ("Jetson AGX Orin", "Orin", 8.7, 64, 204.8, 5.3, 42.5, ORIN_SOURCE),
    ("Jetson AGX Orin", "Orin", 8.7, 32, 204.8, 3.3, 27, ORIN_SOURCE),
    ("Jetson Orin NX", "Orin", 8.7, 16, 102.4, 2.4, 19.2, ORIN_SOURCE),
    ("Jetson Orin NX", "Orin", 8.7, 8, 102.4, 2.4, 19.2, ORIN_SOURCE),
    ("Jetson Orin Nano", "Orin", 8.7, 8, 102.4, 2.1, 16.8, ORIN_SOURCE),
    ("Jetson Orin Nano", "Orin", 8.7, 4, 51.2, 1.0, 8.5, ORIN_SOURCE),
    ("Jetson Thor", "Thor", 11.0, 128, 273, 8.1, 258.8, FP4_SOURCE),  # T5000
    ("Jetson T4000", "Thor", 11.0, 64, 273, 4.7, 150, FP4_SOURCE),
    ("GB10", "", 12.1, 128, 273, 31, 125, FP4_SOURCE),
)

UNIFIED = [
    Chip(
        name, "cuda", (memory,), bandwidth, rates_of(capability, fp32, half), source, capability, sustained=SUSTAINED,
        unified=True, reported=reported,
    )
    for name, reported, capability, memory, bandwidth, fp32, half, source in _SOLD
]  # fmt: skip
