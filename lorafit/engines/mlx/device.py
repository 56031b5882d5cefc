"""MLX's device, its memory limits, and the translation of its errors."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from lorafit.engines.base import OutOfMemory
from lorafit.errors import EngineError, HardwareError
from lorafit.messages import _
from lorafit.units import GIB

# Substrings of MLX's error messages, in lower case (docs/architecture.md, "Failures").
OUT_OF_MEMORY = ("[malloc", "[metal::malloc]", "unable to allocate", "std::bad_alloc", "maximum allowed buffer size")
GPU_FAILED = ("command buffer execution failed", "kiogpucommandbuffer")
MAX_CACHE_BYTES = 2 * GIB  # upper limit of freed buffers that MLX keeps


def use_device(name: str, precision: str) -> None:
    """Compute on `name` (mps: Apple's GPU; cpu) from now on. Raise HardwareError if MLX finds no Apple GPU."""
    if name == "mps" and not mx.metal.is_available():
        raise HardwareError(
            _("MLX found no Apple GPU on this machine."), found=f"mlx {mx.__version__}", fix=_("Use --device cpu.")
        )
    if precision == "fp32":
        os.environ.setdefault("MLX_ENABLE_TF32", "0")  # else an M5 multiplies float32 with 11 bits; read at first use
    mx.set_default_device(mx.gpu if name == "mps" else mx.cpu)
    if name == "cpu":
        mx.disable_compile()  # compiling needs a C++ compiler, which may be missing, and gains nothing


def limit_memory(available_bytes: int) -> None:
    """Limit MLX's memory and cache, so that it returns freed buffers early.

    No memory is wired: wired memory is linked to kernel panics.
    """
    if available_bytes > 0:
        mx.set_memory_limit(available_bytes)
        mx.set_cache_limit(min(MAX_CACHE_BYTES, available_bytes // 8))


def recommended_bytes(_device: str) -> int | None:
    """Return the working set size (bytes) that Metal recommends; None without Metal. (For registry.USABLE_BYTES.)"""
    found = mx.device_info().get("max_recommended_working_set_size") if mx.metal.is_available() else None
    return int(found) if found else None


@contextmanager
def translated() -> Iterator[None]:
    """Turn MLX's exceptions into OutOfMemory and EngineError. Other exceptions are bugs in lorafit and pass unchanged.

    A failed command buffer always ends the process's training: MLX raises once, and later results may be garbage.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error).lower()
        if any(t in text for t in GPU_FAILED):
            fix = _(
                "Resume with --resume, which starts a new process; to use less memory, add a smaller --token_budget."
            )
            raise EngineError(_("The Apple GPU failed or became unavailable."), found=error, fix=fix) from error
        if isinstance(error, MemoryError) or any(t in text for t in OUT_OF_MEMORY):
            traceback.clear_frames(error.__traceback__)  # the frames would keep their arrays as long as the error lives
            mx.clear_cache()
            fix = _("Close other programs that use this memory, or use a smaller model.")
            raise OutOfMemory(_("Out of memory on {device}.").format(device="MLX"), found=error, fix=fix) from error
        raise
