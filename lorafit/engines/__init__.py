"""The muscle: the only place where tensor libraries are imported."""

import os

# GNU OpenMP's threads wait by spinning. Where other programs want the cores too, each waits out another's share of time:
# training was 3 to 4 times slower so than with threads that sleep soon (docs/log.md). Read once, when PyTorch is loaded,
# which a tokenizer of transformers does too.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
