"""NVIDIA GPUs of data centers and workstations: dense matmul rates with float32 accumulation, from NVIDIA's data sheets.

From Volta on, these chips keep their headline rate with float32 accumulation, unlike GeForce cards (geforce.py).
"""

from lorafit.hardware.catalogue.chip import Chip, rates_of
from lorafit.messages import noted

# The lowest compute capability (Turing) that PyTorch's default CUDA builds support since 2.11. Builds for CUDA 12.6
# support Pascal and Volta up to 2.14 (github.com/pytorch/pytorch issues 172352, 190385).
OLDEST_CAPABILITY = 7.5
OLDER_BUILD = "pip install 'torch<2.15' --index-url https://download.pytorch.org/whl/cu126"

SHEETS = noted("NVIDIA data sheets")
LIMITED = noted("NVIDIA data sheets; plans use an estimated share of the rate, since power limits it")
FROM_TOPS = noted(
    "NVIDIA data sheets; 16-bit rate: an eighth of the stated sparse FP4 rate; share at the power limit: estimated"
)

# name: compute capability, memory sizes in GB, GB/s, FP32 TFLOP/s, half-precision TFLOP/s (None: no tensor cores, and
# 16-bit matmuls with float32 accumulation run at the float32 rate)
Row = tuple[str, float, tuple[int, ...], float, float, float | None]
_DATA_CENTER: tuple[Row, ...] = (
    ("P40", 6.1, (24,), 346, 12.0, None),
    ("P100", 6.0, (16,), 732, 9.3, 18.7),
    ("V100", 7.0, (16, 32), 900, 15.7, 125),
    ("V100 PCIe", 7.0, (16, 32), 900, 14.0, 112),
    ("V100S", 7.0, (32,), 1134, 16.4, 130),
    ("T4", 7.5, (16,), 320, 8.1, 65),
    ("T4G", 7.5, (16,), 320, 8.1, 65),
    ("A2", 8.6, (16,), 200, 4.5, 18),
    ("A10", 8.6, (24,), 600, 31.2, 125),
    ("A10G", 8.6, (24,), 600, 31.5, 70),
    ("A16", 8.6, (16,), 200, 4.5, 17.9),  # one of the four GPUs of the card
    ("A30", 8.0, (24,), 933, 10.3, 165),
    ("A40", 8.6, (48,), 696, 37.4, 149.7),
    ("A100", 8.0, (40,), 1555, 19.5, 312),
    ("A100", 8.0, (80,), 2039, 19.5, 312),
    ("A100 PCIe", 8.0, (40,), 1555, 19.5, 312),
    ("A100 PCIe", 8.0, (80,), 1935, 19.5, 312),
    ("A800", 8.0, (40,), 1555, 19.5, 312),
    ("A800", 8.0, (80,), 2039, 19.5, 312),
    ("A800 PCIe", 8.0, (40,), 1555, 19.5, 312),
    ("A800 PCIe", 8.0, (80,), 1935, 19.5, 312),
    ("L4", 8.9, (24,), 300, 30.3, 121),
    ("L20", 8.9, (48,), 864, 59.8, 119.5),
    ("L40", 8.9, (48,), 864, 90.5, 181),
    ("L40S", 8.9, (48,), 864, 91.6, 362),
    ("H20", 9.0, (96,), 4000, 44, 148),
    ("H20-3e", 9.0, (141,), 4800, 44, 148),
    ("H100", 9.0, (80,), 3350, 67, 989),
    ("H100 PCIe", 9.0, (80,), 2000, 51, 756),
    ("H100 NVL", 9.0, (94,), 3900, 60, 835),
    ("H800", 9.0, (80,), 3350, 67, 989),
    ("H800 PCIe", 9.0, (80,), 2000, 51, 756),
    ("H200", 9.0, (141,), 4800, 67, 989),
    ("H200 NVL", 9.0, (141,), 4800, 60, 835),
    ("GH200", 9.0, (96,), 4000, 67, 989),
    ("GH200", 9.0, (144,), 4900, 67, 989),
    ("B200", 10.0, (180,), 8000, 80, 2250),
    ("B300", 10.3, (288,), 8000, 75, 2250),
)
_WORKSTATION: tuple[Row, ...] = (
    ("TITAN RTX", 7.5, (24,), 672, 16.3, 130.5),
    ("Quadro RTX 5000", 7.5, (16,), 448, 11.2, 89.2),
    ("Quadro RTX 6000", 7.5, (24,), 672, 16.3, 130.5),
    ("Quadro RTX 8000", 7.5, (48,), 672, 16.3, 130.5),
    ("RTX A2000", 8.6, (6, 12), 288, 8.0, 31.9),
    ("RTX A4000", 8.6, (16,), 448, 19.2, 76.7),
    ("RTX A4500", 8.6, (20,), 640, 23.7, 94.6),
    ("RTX A5000", 8.6, (24,), 768, 27.8, 111.1),
    ("RTX A5500", 8.6, (24,), 768, 34.1, 136.4),
    ("RTX A6000", 8.6, (48,), 768, 38.7, 154.8),
    ("RTX 4000 Ada", 8.9, (20,), 360, 26.7, 106.9),
    ("RTX 4500 Ada", 8.9, (24,), 432, 39.6, 158.5),
    ("RTX 5000 Ada", 8.9, (32,), 576, 65.3, 261.1),
    ("RTX 6000 Ada", 8.9, (48,), 960, 91.1, 364.2),
    ("RTX PRO 4000", 12.0, (24,), 672, 36.8, 147.3),
    ("RTX PRO 4500", 12.0, (32,), 896, 52.7, 210.9),
    ("RTX PRO 5000", 12.0, (48,), 1344, 64.5, 258),
    ("RTX PRO 6000", 12.0, (96,), 1792, 126, 503.8),
    ("RTX PRO 6000 Max-Q", 12.0, (96,), 1792, 110, 438.9),
    ("RTX PRO 6000 Server", 12.0, (96,), 1597, 120, 480),
)

# Assumed: cards of about 70 W lower their clock during matmuls, and power and memory limit the largest chips.
_SUSTAINED = {
    "T4": 0.5, "T4G": 0.5, "L4": 0.5, "A2": 0.75, "A16": 0.75, "A10": 0.6, "A30": 0.8, "A100 PCIe": 0.8,
    "A800 PCIe": 0.8, "H100": 0.75, "H100 PCIe": 0.6, "H100 NVL": 0.65, "H800": 0.75, "H800 PCIe": 0.6, "H200": 0.75,
    "H200 NVL": 0.65, "GH200": 0.75, "B200": 0.6, "B300": 0.6, "RTX A2000": 0.75, "RTX 5000 Ada": 0.8,
    "RTX 6000 Ada": 0.75, "RTX PRO 4000": 0.75, "RTX PRO 4500": 0.75, "RTX PRO 5000": 0.9, "RTX PRO 6000": 0.9,
    "RTX PRO 6000 Max-Q": 0.7, "RTX PRO 6000 Server": 0.9,
}  # fmt: skip


def _source(name: str) -> str:
    if name.startswith("RTX PRO"):
        return FROM_TOPS
    return LIMITED if name in _SUSTAINED else SHEETS


def _chips(rows: tuple[Row, ...]) -> list[Chip]:
    return [
        Chip(
            name, "cuda", memory, bandwidth, rates_of(capability, fp32, half), _source(name), capability,
            sustained=_SUSTAINED.get(name, 1.0),
        )
        for name, capability, memory, bandwidth, fp32, half in rows
    ]  # fmt: skip


DATA_CENTER, WORKSTATION = _chips(_DATA_CENTER), _chips(_WORKSTATION)

# Share of the stated memory that is free on an idle machine. Driver and CUDA context take the rest (with ECC, a T4 has
# 15.0 of 16 GB).
USABLE_SHARE = 0.93
