"""OpenBLAS for MLX on Linux, where its wheel has only a reference BLAS: OpenBLAS is about 40 times faster.

MLX uses the first `cblas_sgemm` in the process, so OpenBLAS must be loaded with global symbols before MLX is imported.
macOS has its own BLAS. This module does not need MLX.
"""

import ctypes
import ctypes.util
import sys
from collections.abc import Iterator
from functools import cache
from glob import glob
from pathlib import Path

SYMBOL = "cblas_sgemm"
# Paths on Debian and Ubuntu, Fedora, Arch, and in conda. The copies in NumPy and SciPy are no use: they rename every
# function.
PLACES = (
    "/usr/lib/*-linux-gnu/openblas-pthread/libopenblas.so.0",
    "/usr/lib/*-linux-gnu/libopenblas.so.0",
    "/usr/lib64/libopenblas*.so.0",
    "/usr/lib/libopenblas.so*",
    f"{sys.prefix}/lib/libopenblas.so*",
)
INSTALL = "sudo apt install libopenblas0-pthread"


@cache
def load_fast_blas() -> str | None:
    """Load OpenBLAS into this process once; return its path or name, or None if there is none (or no need: not Linux).

    Call this before `import mlx.core`.
    """
    if sys.platform != "linux":
        return None
    for library in ("libgfortran.so.5", *_candidates()):
        try:
            handle = ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        if hasattr(handle, SYMBOL):
            return library
    return None


def is_slow() -> bool:
    """Return True if MLX has only its reference BLAS on this machine."""
    return sys.platform == "linux" and load_fast_blas() is None


def _candidates() -> Iterator[str]:
    found = ctypes.util.find_library("openblas")
    if found:
        yield found
    for pattern in PLACES:
        yield from (path for path in sorted(glob(pattern)) if Path(path).is_file())
