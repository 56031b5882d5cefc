"""Does MLX multiply fast on this processor? On Linux its wheel brings a reference BLAS: OpenBLAS is some 40 times faster.

MLX takes whichever `cblas_sgemm` is there first, so a faster library must be loaded, for all to see, before MLX is.
macOS has its own. Nothing here needs MLX.
"""

import ctypes
import ctypes.util
import sys
from collections.abc import Iterator
from functools import cache
from glob import glob
from pathlib import Path

SYMBOL = "cblas_sgemm"
# Debian, Ubuntu; Fedora, Arch; conda. NumPy's and SciPy's own copies rename every function, so they cannot serve.
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
    """Load OpenBLAS into this process, once; where it lies, or None where there is none. Before `import mlx.core`."""
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
    """Whether MLX has only its reference BLAS here."""
    return sys.platform == "linux" and load_fast_blas() is None


def _candidates() -> Iterator[str]:
    found = ctypes.util.find_library("openblas")
    if found:
        yield found
    for pattern in PLACES:
        yield from (path for path in sorted(glob(pattern)) if Path(path).is_file())
