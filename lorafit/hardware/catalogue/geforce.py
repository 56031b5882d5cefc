"""NVIDIA GeForce cards and laptop GPUs: dense matmul rates with float32 accumulation, from NVIDIA's white papers.

On GeForce cards, float16 matmuls with float32 accumulation run at half the headline rate of the data sheets, which is for
float16 accumulation. The figures here are for float32 accumulation, which training uses. So tensor cores reach 4 times
the float32 rate on Turing, and 2 times on later chips. GTX cards have no tensor cores.
"""

from lorafit.hardware.catalogue.chip import Chip, rates_of
from lorafit.messages import noted

PAPERS = {
    6.1: noted("NVIDIA Pascal specifications"),
    7.5: noted("NVIDIA Turing architecture white paper"), 8.6: noted("NVIDIA Ampere GA102 architecture white paper"),
    8.9: noted("NVIDIA Ada architecture white paper"), 12.0: noted("NVIDIA RTX Blackwell architecture white paper"),
}  # fmt: skip
LAPTOPS = noted(
    "NVIDIA's specifications of laptop GPUs: cores x 2 x highest boost clock, which needs the highest power limit "
    "(80 to 175 W by model); share of the rate that lasts: estimated"
)
LAPTOP_SUSTAINED = 0.75  # assumed at the highest power limit; a laptop with a lower limit is slower

# name, compute capability, memory sizes in GB, GB/s, FP32 TFLOP/s
Row = tuple[str, float, tuple[int, ...], float, float]
_DESKTOP: tuple[Row, ...] = (
    ("GTX 1080 Ti", 6.1, (11,), 484, 11.3),
    ("GTX 1650", 7.5, (4,), 128, 3.0),
    ("GTX 1650 Super", 7.5, (4,), 192, 4.4),
    ("GTX 1660", 7.5, (6,), 192, 5.0),
    ("GTX 1660 Super", 7.5, (6,), 336, 5.0),
    ("GTX 1660 Ti", 7.5, (6,), 288, 5.4),
    ("RTX 2060", 7.5, (6, 12), 336, 6.5),
    ("RTX 2060 Super", 7.5, (8,), 448, 7.2),
    ("RTX 2070", 7.5, (8,), 448, 7.5),
    ("RTX 2070 Super", 7.5, (8,), 448, 9.1),
    ("RTX 2080", 7.5, (8,), 448, 10.1),
    ("RTX 2080 Super", 7.5, (8,), 496, 11.2),
    ("RTX 2080 Ti", 7.5, (11, 22), 616, 13.4),  # 22 GB: modified cards
    ("RTX 3050", 8.6, (6,), 168, 6.8),
    ("RTX 3050", 8.6, (8,), 224, 9.1),
    ("RTX 3060", 8.6, (8,), 240, 12.7),
    ("RTX 3060", 8.6, (12,), 360, 12.7),
    ("RTX 3060 Ti", 8.6, (8,), 448, 16.2),
    ("RTX 3070", 8.6, (8,), 448, 20.3),
    ("RTX 3070 Ti", 8.6, (8,), 608, 21.7),
    ("RTX 3080", 8.6, (10,), 760, 29.8),
    ("RTX 3080", 8.6, (12,), 912, 30.6),
    ("RTX 3080 Ti", 8.6, (12,), 912, 34.1),
    ("RTX 3090", 8.6, (24,), 936, 35.6),
    ("RTX 3090 Ti", 8.6, (24,), 1008, 40.0),
    ("RTX 4060", 8.9, (8,), 272, 15.1),
    ("RTX 4060 Ti", 8.9, (8, 16), 288, 22.1),
    ("RTX 4070", 8.9, (12,), 504, 29.1),
    ("RTX 4070 Super", 8.9, (12,), 504, 35.5),
    ("RTX 4070 Ti", 8.9, (12,), 504, 40.1),
    ("RTX 4070 Ti Super", 8.9, (16,), 672, 44.1),
    ("RTX 4080", 8.9, (16,), 717, 48.7),
    ("RTX 4080 Super", 8.9, (16,), 736, 52.2),
    ("RTX 4090", 8.9, (24, 48), 1008, 82.6),  # 48 GB: modified cards
    ("RTX 4090 D", 8.9, (24, 48), 1008, 73.5),
    ("RTX 5050", 12.0, (8,), 320, 13.2),
    ("RTX 5060", 12.0, (8,), 448, 19.2),
    ("RTX 5060 Ti", 12.0, (8, 16), 448, 23.7),
    ("RTX 5070", 12.0, (12,), 672, 30.9),
    ("RTX 5070 Ti", 12.0, (16,), 896, 43.9),
    ("RTX 5080", 12.0, (16,), 960, 56.3),
    ("RTX 5090", 12.0, (32,), 1792, 104.8),
)
# name without "Laptop", compute capability, memory sizes in GB, GB/s, cores, highest boost clock in GHz
_LAPTOP: tuple[tuple[str, float, tuple[int, ...], float, int, float], ...] = (
    ("RTX 3050", 8.6, (4,), 192, 2048, 1.740),
    ("RTX 3050 Ti", 8.6, (4,), 192, 2560, 1.695),
    ("RTX 3060", 8.6, (6,), 336, 3840, 1.703),
    ("RTX 3070", 8.6, (8,), 448, 5120, 1.620),
    ("RTX 3070 Ti", 8.6, (8,), 448, 5888, 1.485),
    ("RTX 3080", 8.6, (8, 16), 448, 6144, 1.710),
    ("RTX 3080 Ti", 8.6, (16,), 512, 7424, 1.590),
    ("RTX 4050", 8.9, (6,), 192, 2560, 2.370),
    ("RTX 4060", 8.9, (8,), 256, 3072, 2.370),
    ("RTX 4070", 8.9, (8,), 256, 4608, 2.175),
    ("RTX 4080", 8.9, (12,), 432, 7424, 2.280),
    ("RTX 4090", 8.9, (16,), 576, 9728, 2.040),
    ("RTX 5050", 12.0, (8,), 384, 2560, 2.662),
    ("RTX 5060", 12.0, (8,), 384, 3328, 2.497),
    ("RTX 5070", 12.0, (8,), 384, 4608, 2.347),
    ("RTX 5070 Ti", 12.0, (12,), 672, 5888, 2.220),
    ("RTX 5080", 12.0, (16,), 896, 7680, 2.287),
    ("RTX 5090", 12.0, (24,), 896, 10496, 2.160),
)


def _half(name: str, capability: float, fp32: float) -> float | None:
    """Return the rate of 16-bit matmuls with float32 accumulation, None for a card without tensor cores."""
    if name.startswith("GTX"):
        return None
    return round(fp32 * (4 if capability == 7.5 else 2), 1)


GEFORCE = [
    Chip(
        name, "cuda", memory, bandwidth, rates_of(capability, fp32, _half(name, capability, fp32)), PAPERS[capability],
        capability,
    )
    for name, capability, memory, bandwidth, fp32 in _DESKTOP
]  # fmt: skip
LAPTOP = [
    Chip(
        f"{name} Laptop", "cuda", memory, bandwidth, rates_of(capability, fp32, round(2 * fp32, 1)), LAPTOPS, capability,
        sustained=LAPTOP_SUSTAINED,
    )
    for name, capability, memory, bandwidth, cores, clock in _LAPTOP
    for fp32 in (round(cores * 2 * clock / 1000, 1),)
]  # fmt: skip
