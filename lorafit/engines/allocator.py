"""Allocator profiles of the C library, one per run: for glibc on Linux; elsewhere nothing changes.

`fast` keeps freed memory, so no page is requested twice. `lean` returns large blocks at once, so the peak is what the
tensors need. `default` sets the values that glibc's dynamic thresholds reach once a block of 32 MiB was freed.
Every run loads its model with LOADING: `fast` would keep all memory that reading and quantizing use. glibc's dynamic
thresholds left holes of over 1 GiB between 4-bit weights, of a size that varied by chance.
engines/torch/device.py configures the allocators of CUDA and MPS.
"""

import ctypes
import platform
import sys

from lorafit.units import KIB, MIB

# Parameter numbers of mallopt(3). Its values are ints: a threshold of -1 is never reached.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
PROFILES = {
    "fast": {MMAP_MAX: 0, TRIM_THRESHOLD: -1, TOP_PAD: 64 * MIB},
    "lean": {MMAP_THRESHOLD: MIB, TRIM_THRESHOLD: MIB, TOP_PAD: 0},
    "default": {MMAP_THRESHOLD: 32 * MIB, TRIM_THRESHOLD: 64 * MIB, TOP_PAD: 128 * KIB},
}
LOADING = "lean"


def has_profiles() -> bool:
    """Return True if the C library supports the profiles: glibc on Linux, but neither musl nor macOS."""
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


def set_profile(profile: str) -> bool:
    """Set `profile` for the rest of this process; return False if any of its parameters was refused.

    Without glibc, only `default` returns True.
    """
    if not has_profiles():
        return profile == "default"
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(option, value) == 1 for option, value in PROFILES[profile].items()])


def trim() -> None:
    """Return freed memory of this process to the system (glibc only)."""
    if has_profiles():
        ctypes.CDLL(None).malloc_trim(0)
