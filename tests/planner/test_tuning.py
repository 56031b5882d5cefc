"""The choice of allocator profile and of compilation, and the memory that each profile keeps."""

import subprocess
import sys
from dataclasses import replace

import pytest

from lorafit.config import TrainConfig
from lorafit.engines import allocator
from lorafit.hardware.detect import Machine, detect_machine
from lorafit.planner.fast_path import FAST, GENERIC
from lorafit.planner.tuning import COMPILE_SAVES, COMPILE_SECONDS, choose_allocator, choose_compile
from lorafit.units import GIB

# Allocates 12 blocks of 4 MiB, frees them, and prints how many MiB stay resident, before and after trim(). `default`
# returns memory at the end of the heap only above 64 MiB, which is more than these 48.
ALLOCATE_AND_FREE = """
import ctypes, re, sys
from pathlib import Path
from lorafit.engines import allocator
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
for profile in sys.argv[1].split("+"):
    assert allocator.set_profile(profile)
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
before, size = resident(), 4 << 20
blocks = [c.malloc(size) for _ in range(12)]
for block in blocks:
    ctypes.memset(block, 1, size)
for block in blocks:
    c.free(block)
freed = resident() - before
allocator.trim()
print(freed, resident() - before)
"""


@pytest.fixture
def linux() -> Machine:
    """This machine, as if it ran Linux."""
    return replace(detect_machine(), system="Linux")


@pytest.mark.parametrize(("peak", "profile"), [(3 * GIB, "fast"), (8 * GIB, "lean")])
def test_memory_decides_between_fast_and_lean(linux: Machine, peak: int, profile: str) -> None:
    assert choose_allocator(TrainConfig(), linux, "cpu", peak, 10 * GIB).value == profile


def test_what_is_asked_for_is_taken_and_other_systems_keep_their_own(linux: Machine) -> None:
    assert choose_allocator(TrainConfig(allocator="lean"), linux, "cpu", GIB, 10 * GIB).value == "lean"
    assert choose_allocator(TrainConfig(), replace(linux, system="Darwin"), "mps", GIB, 10 * GIB).value == "default"


@pytest.mark.skipif(not allocator.has_profiles(), reason="the C library is not glibc")
def test_lean_gives_back_what_fast_keeps_until_memory_is_short() -> None:
    def kept(profiles: str) -> tuple[float, float]:
        """Return the resident MiB after all blocks are freed, and after trim()."""
        command = [sys.executable, "-c", ALLOCATE_AND_FREE, profiles]
        freed, trimmed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return float(freed), float(trimmed)

    assert kept("lean")[0] < 8
    freed, trimmed = kept("fast")
    assert freed > 40
    assert trimmed < 8
    assert kept(f"{allocator.LOADING}+fast")[0] > 40, "from loading to training"
    assert kept(f"{allocator.LOADING}+default")[0] > 40, "glibc's own thresholds again"


def test_layers_are_compiled_only_where_it_pays() -> None:
    break_even = COMPILE_SECONDS["cpu"] / COMPILE_SAVES["cpu"]
    assert choose_compile(TrainConfig(), "cpu", GENERIC, break_even * 0.9).value == "off"
    assert choose_compile(TrainConfig(), "cpu", GENERIC, break_even * 1.1).value == "on"
    assert choose_compile(TrainConfig(), "cuda", GENERIC, 1e9).value == "off", "nothing was measured there"
    assert choose_compile(TrainConfig(compile="on"), "cuda", GENERIC, 1.0).value == "on"


def test_the_fast_path_is_never_compiled() -> None:
    assert choose_compile(TrainConfig(compile="on"), "cpu", FAST, 1e9).value == "off"
