"""How fast do processors multiply? float32 products by one thread, measured; any other is measured where it runs."""

from lorafit.messages import noted

# Processor (a part of its name) -> GFLOP/s of one core, and where that was measured.
MEASURED = {
    "EPYC": (94.0, noted("measured: one core of a Zen 3 (AVX2, no AMX), products of 1024 x 1024 matrices")),
}
UNKNOWN = 60.0  # GFLOP/s a core
UNKNOWN_SOURCE = noted("assumed where it is only named (AVX2 at 3 GHz could do 96); measured on the machine itself")
BYTES_PER_SECOND = 20e9  # of main memory, to one process


def core_gflops(chip: str) -> float:
    """float32 GFLOP/s that a core of the processor called `chip` does."""
    return next((rate for name, (rate, _source) in MEASURED.items() if name.lower() in chip.lower()), UNKNOWN)
