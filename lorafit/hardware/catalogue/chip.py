"""What must be known of a chip to plan for it? Memory, bandwidth and speed, with where the figures come from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """A GPU. `teraflops` are dense products with float32 sums, as the maker states them: what can be had is less.

    `memory_gb` are the sizes that it was sold with, the smallest first; `gigabytes_per_second` its memory's bandwidth.
    """

    name: str
    kind: str  # mps | cuda
    memory_gb: tuple[int, ...]
    gigabytes_per_second: float
    teraflops: dict[str, float]  # by precision: fp32, bf16, fp16; a missing one is not computed in hardware
    source: str
    capability: float | None = None  # CUDA's compute capability
    cores: int | None = None  # GPU cores, where versions differ by them
    sustained: float = 1.0  # of the stated rates, what power and heat leave for hours

    @property
    def bf16(self) -> bool:
        return "bf16" in self.teraflops
