"""The PyTorch engine: CUDA, Apple's MPS, CPU."""

import os

# GNU OpenMP's threads wait by spinning. Where other programs want the cores too, each waits out another's share of time:
# training was 3 to 4 times slower so than with threads that sleep soon (docs/log.md). Read once, when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
