"""The engines: the only package that imports tensor libraries."""

import os

# GNU OpenMP threads spin while they wait. When other programs need the cores, a thread spins through their time slices:
# training was 3 to 4 times slower than with threads that sleep soon (docs/log.md). OpenMP reads the variable once, when
# PyTorch is loaded; a transformers tokenizer also loads PyTorch.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
