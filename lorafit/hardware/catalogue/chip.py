"""Properties of a GPU that a plan needs: memory, bandwidth and speed, with the source of the figures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """A GPU model.

    `teraflops`: the maker's rates of dense matmuls with float32 accumulation; real rates are lower. `memory_gb`: the sizes
    that were sold, the smallest first. `gigabytes_per_second`: memory bandwidth.
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
