"""Properties of a GPU that a plan needs: memory, bandwidth and speed, with the source of the figures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """A GPU model. Versions with other memory and another bandwidth are entries of their own, with the same name.

    `teraflops`: the maker's rates of dense matmuls with float32 accumulation; real rates are lower. `memory_gb`: the sizes
    that exist, the smallest first. `gigabytes_per_second`: memory bandwidth.
    """

    name: str
    kind: str  # mps | cuda
    memory_gb: tuple[int, ...]
    gigabytes_per_second: float
    teraflops: dict[str, float]  # by precision: fp32, bf16, fp16; a missing one is not in hardware
    source: str
    capability: float | None = None  # CUDA compute capability
    cores: int | None = None  # GPU cores, for chips sold with different numbers of cores
    sustained: float = 1.0  # share of the stated rates that power and heat allow for hours
    unified: bool = False  # an NVIDIA chip whose GPU shares the main memory
    reported: str = ""  # the driver's name, where it has the same name for several chips


def rates_of(capability: float, fp32: float, half: float | None) -> dict[str, float]:
    """Return TFLOP/s by precision; `half` None: no faster unit for 16 bits. bf16 is in hardware from Ampere (8.0) on."""
    if half is None:
        return {"fp32": fp32}
    return {"fp32": fp32, "fp16": half} | ({"bf16": half} if capability >= 8.0 else {})
