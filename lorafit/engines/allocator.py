"""How does the C library hand out memory? One profile a run, for glibc on Linux; elsewhere nothing is changed.

`fast` keeps what was once taken, so that no page is asked for twice; `lean` gives large blocks back at once, so that
the peak is what the tensors need; `default` is what glibc's own thresholds grow to once a block of 32 MiB was freed.
Models are loaded with LOADING whatever comes after: `fast` would keep all that reading and quantising take, and glibc's
growing thresholds left holes of over 1 GiB between 4-bit weights, more or fewer by chance. CUDA's and MPS's own allocators are set in engines/torch/device.py.
"""

import ctypes
import platform
import sys

from lorafit.units import KIB, MIB

# mallopt(3). Parameters are ints: a threshold of -1 is never reached.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
PROFILES = {
    "fast": {MMAP_MAX: 0, TRIM_THRESHOLD: -1, TOP_PAD: 64 * MIB},
    "lean": {MMAP_THRESHOLD: MIB, TRIM_THRESHOLD: MIB, TOP_PAD: 0},
    "default": {MMAP_THRESHOLD: 32 * MIB, TRIM_THRESHOLD: 64 * MIB, TOP_PAD: 128 * KIB},
}
LOADING = "lean"


def has_profiles() -> bool:
    """Whether this C library can be told: glibc on Linux; neither musl nor macOS."""
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


def use(profile: str) -> bool:
    """Set `profile` for this process from now on; False where something of it was not taken."""
    if not has_profiles():
        return profile == "default"
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(option, value) == 1 for option, value in PROFILES[profile].items()])


def trim() -> None:
    """Give the system back what this process has freed and keeps."""
    if has_profiles():
        ctypes.CDLL(None).malloc_trim(0)
