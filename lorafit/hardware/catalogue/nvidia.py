"""NVIDIA GPUs from P100 to B200: dense matmul rates with float32 accumulation, from NVIDIA's data sheets.

On GeForce cards, float16 matmuls with float32 accumulation run at half the headline rate of the data sheets, which is for
float16 accumulation. The figures here are for float32 accumulation, which training uses.
"""

from lorafit.hardware.catalogue.chip import Chip
from lorafit.messages import noted

# The lowest compute capability (Turing) that PyTorch's default CUDA builds support since 2.11. Builds for CUDA 12.6
# support Pascal and Volta up to 2.14 (github.com/pytorch/pytorch issues 172352, 190385).
OLDEST_CAPABILITY = 7.5
OLDER_BUILD = "pip install 'torch<2.15' --index-url https://download.pytorch.org/whl/cu126"

SHEETS = noted("NVIDIA data sheets")
PAPERS = {
    7.5: noted("NVIDIA Turing architecture white paper"), 8.6: noted("NVIDIA Ampere GA102 architecture white paper"),
    8.9: noted("NVIDIA Ada architecture white paper"), 12.0: noted("NVIDIA RTX Blackwell architecture white paper"),
}  # fmt: skip

# name: compute capability, memory sizes in GB, GB/s, FP32 TFLOP/s, half-precision TFLOP/s
_DATA_CENTER: dict[str, tuple[float, tuple[int, ...], float, float, float]] = {
    "P100": (6.0, (16,), 732, 9.3, 18.7),
    "V100": (7.0, (16, 32), 900, 14.0, 112),
    "T4": (7.5, (16,), 320, 8.1, 65),
    "A10G": (8.6, (24,), 600, 31.5, 70),
    "L4": (8.9, (24,), 300, 30.3, 121),
    "L40S": (8.9, (48,), 864, 91.6, 362),
    "A100": (8.0, (40, 80), 1555, 19.5, 312),
    "H100": (9.0, (80,), 3350, 67, 989),
    "H200": (9.0, (141,), 4800, 67, 989),
    "B200": (10.0, (180,), 8000, 80, 2250),
    "RTX A4000": (8.6, (16,), 448, 19.2, 76.7),
}
_GEFORCE: dict[str, tuple[float, tuple[int, ...], float, float]] = {
    "RTX 2060": (7.5, (6, 12), 336, 6.5),
    "RTX 2070": (7.5, (8,), 448, 7.5),
    "RTX 2070 Super": (7.5, (8,), 448, 9.1),
    "RTX 2080": (7.5, (8,), 448, 10.1),
    "RTX 2080 Super": (7.5, (8,), 496, 11.2),
    "RTX 2080 Ti": (7.5, (11,), 616, 13.4),
    "RTX 3060": (8.6, (8, 12), 360, 12.7),
    "RTX 3060 Ti": (8.6, (8,), 448, 16.2),
    "RTX 3070": (8.6, (8,), 448, 20.3),
    "RTX 3070 Ti": (8.6, (8,), 608, 21.7),
    "RTX 3080": (8.6, (10, 12), 760, 29.8),
    "RTX 3080 Ti": (8.6, (12,), 912, 34.1),
    "RTX 3090": (8.6, (24,), 936, 35.6),
    "RTX 3090 Ti": (8.6, (24,), 1008, 40.0),
    "RTX 4060": (8.9, (8,), 272, 15.1),
    "RTX 4060 Ti": (8.9, (8, 16), 288, 22.1),
    "RTX 4070": (8.9, (12,), 504, 29.1),
    "RTX 4070 Super": (8.9, (12,), 504, 35.5),
    "RTX 4070 Ti": (8.9, (12,), 504, 40.1),
    "RTX 4070 Ti Super": (8.9, (16,), 672, 44.1),
    "RTX 4080": (8.9, (16,), 717, 48.7),
    "RTX 4080 Super": (8.9, (16,), 736, 52.2),
    "RTX 4090": (8.9, (24,), 1008, 82.6),
    "RTX 5060": (12.0, (8,), 448, 19.2),
    "RTX 5060 Ti": (12.0, (8, 16), 448, 23.7),
    "RTX 5070": (12.0, (12,), 672, 30.9),
    "RTX 5070 Ti": (12.0, (16,), 896, 43.9),
    "RTX 5080": (12.0, (16,), 960, 56.3),
    "RTX 5090": (12.0, (32,), 1792, 104.8),
}


# Assumed: cards of about 70 W lower their clock during matmuls, and power and memory limit the largest chips.
_SUSTAINED = {"T4": 0.5, "L4": 0.5, "H100": 0.75, "H200": 0.75, "B200": 0.6}


def _rates(capability: float, fp32: float, half: float) -> dict[str, float]:
    """Return TFLOP/s by precision; bf16 is in hardware from Ampere (8.0) on."""
    return {"fp32": fp32, "fp16": half} | ({"bf16": half} if capability >= 8.0 else {})


NVIDIA = [
    Chip(
        name, "cuda", memory, bandwidth, _rates(capability, fp32, half), SHEETS, capability,
        sustained=_SUSTAINED.get(name, 1.0),
    )
    for name, (capability, memory, bandwidth, fp32, half) in _DATA_CENTER.items()
] + [  # GeForce: with float32 accumulation, tensor cores reach 4 times the float32 rate on Turing, 2 times on later chips.
    Chip(
        name, "cuda", memory, bandwidth, _rates(capability, fp32, fp32 * (4 if capability == 7.5 else 2)),
        PAPERS[capability], capability,
    )
    for name, (capability, memory, bandwidth, fp32) in _GEFORCE.items()
]  # fmt: skip

# Share of the stated memory that is free on an idle machine. Driver and CUDA context take the rest (with ECC, a T4 has
# 15.0 of 16 GB).
USABLE_SHARE = 0.93
