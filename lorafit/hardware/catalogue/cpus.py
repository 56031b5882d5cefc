"""float32 matmul rates of CPUs, per core.

On the machine itself the rate is measured; these figures are for machines described by name.
"""

from lorafit.messages import noted

# Part of a CPU's name -> GFLOP/s of one core, and the source.
MEASURED = {
    "EPYC": (94.0, noted("measured on one Zen 3 core (AVX2, no AMX): multiplication of 1024 x 1024 matrices")),
}
UNKNOWN = 60.0  # GFLOP/s per core
UNKNOWN_SOURCE = noted(
    "assumed for a CPU that is only named (AVX2 at 3 GHz could reach 96); on your own machine the rate is measured"
)
BYTES_PER_SECOND = 20e9  # main memory bandwidth of one process


def core_gflops(chip: str) -> float:
    """Return the float32 GFLOP/s per core of the CPU named `chip`."""
    return next((rate for name, (rate, _source) in MEASURED.items() if name.lower() in chip.lower()), UNKNOWN)
