"""Differences between CUDA, MPS and CPU under torch, in one table: `DEVICES`.

Facts about a device belong in this table, not in conditions on its name elsewhere.
"""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lorafit.engines import allocator
from lorafit.engines.base import OutOfMemory, Setup
from lorafit.errors import EngineError, HardwareError
from lorafit.messages import _

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Device:
    """What the engine needs to know about a device. `peak_bytes` returns None where torch cannot tell."""

    name: str
    available: Callable[[], bool]
    peak_bytes: Callable[[], int | None]
    empty_cache: Callable[[], None]
    recommended_bytes: Callable[[], int | None]  # bytes that may be used, as reported by the driver; else None
    fast_path: bool = False  # the packed decoder has been run and measured on this device
    stores_bf16: bool = False  # bfloat16 only stores weights: arithmetic is in float32
    has_flash: Callable[[], bool] = lambda: False  # 16-bit flash attention over segments of any length
    fused_adamw: bool = True  # MPS has no foreach kernels: unfused AdamW would loop over tensors


def _cpu_peak_bytes() -> int | None:
    """Return the peak resident bytes of this process: VmHWM on Linux, ru_maxrss (bytes there) on macOS, else None."""
    if sys.platform == "linux":
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
        return int(found[1]) * 1024 if found else None
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def _mps_peak_bytes() -> int | None:
    """Return the peak bytes on MPS, or the bytes that the driver holds now, cache included, where no peak is recorded.

    torch.mps records no peak. Since torch 2.13 torch.accelerator may record one; it returns 0 where it does not.
    """
    peak = getattr(getattr(torch, "accelerator", None), "max_memory_allocated", None)
    try:
        return int(peak() if peak else 0) or int(torch.mps.driver_allocated_memory()) or None
    except RuntimeError:
        return None


def _cuda_free_bytes() -> int | None:
    return int(torch.cuda.mem_get_info()[0])


def _cuda_has_flash() -> bool:
    """Return whether the GPU is Ampere or later: the kernel is not compiled for a T4 or a P100."""
    return torch.cuda.get_device_capability() >= (8, 0)


DEVICES = {
    "cuda": Device(
        "cuda",
        torch.cuda.is_available,
        torch.cuda.max_memory_allocated,
        torch.cuda.empty_cache,
        _cuda_free_bytes,
        has_flash=_cuda_has_flash,
    ),
    "mps": Device(
        "mps",
        torch.backends.mps.is_available,
        _mps_peak_bytes,
        torch.mps.empty_cache,
        torch.mps.recommended_max_memory,
    ),
    "cpu": Device("cpu", lambda: True, _cpu_peak_bytes, allocator.trim, lambda: None, True, stores_bf16=True),
}


def _prepare_environment(device: str) -> None:
    """Set the variables that torch's allocators read once, before the first use of a device; keep the user's values."""
    high, low = "PYTORCH_MPS_HIGH_WATERMARK_RATIO", "PYTORCH_MPS_LOW_WATERMARK_RATIO"
    if device == "mps" and low not in os.environ:
        # By default MPS may allocate 1.7 times what Metal recommends: more than the RAM of a small Mac.
        limit = os.environ.setdefault(high, "1.0")
        os.environ[low] = f"{0.9 * float(limit):g}"  # torch refuses a low ratio above the high ratio
    if device == "cuda":
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def get_device(name: str) -> Device:
    """Return the device called `name`, ready for use. Raise HardwareError if this torch cannot use it."""
    _prepare_environment(name)  # first, since any query creates MPS's allocator, even the query for its limit
    device = DEVICES[name]
    if not device.available():
        raise HardwareError(
            _("PyTorch cannot use device `{name}` on this machine.").format(name=name),
            found=f"torch {torch.__version__}",
            fix=_("Run `lorafit doctor` to see what is missing, or use --device cpu, which works everywhere."),
        )
    return device


def arithmetic_dtype(setup: Setup) -> torch.dtype:
    """Return the dtype of the arithmetic; weights may be stored in fewer bits."""
    stored = setup.precision == "bf16" and setup.quantization == "none" and DEVICES[setup.device].stores_bf16
    return torch.float32 if stored else DTYPES[setup.precision]


def measured_bytes(name: str) -> int | None:
    """Return the bytes that the driver lets `name` use now; None on the CPU.

    Metal reports its recommended working set, CUDA its free memory.
    """
    return get_device(name).recommended_bytes()


# Lower-case substrings of the backends' error messages, by meaning (docs/architecture.md, "Failures").
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "invalid buffer size", "std::bad_alloc",
                 "insufficient memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed")  # fmt: skip
UNSUPPORTED = ("not currently implemented for the mps device",)
BROKEN = ("cuda error", "cublas_status", "device-side assert")


def _is_out_of_memory(error: Exception) -> bool:
    told = any(part in str(error).lower() for part in OUT_OF_MEMORY)
    return told or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def is_device_failure(error: Exception) -> bool:
    """Return whether `error` is one that translated() translates: of the device, not of the model's code."""
    return _is_out_of_memory(error) or any(part in str(error).lower() for part in (*UNSUPPORTED, *BROKEN))


@contextmanager
def translated(device: Device) -> Iterator[None]:
    """Turn the backend's exceptions into OutOfMemory and EngineError.

    Any other exception is a bug of lorafit and is raised again.
    """
    try:
        yield
    except (RuntimeError, MemoryError, NotImplementedError) as error:
        text = str(error).lower()
        if _is_out_of_memory(error):
            fix = _("Close other programs that use this memory, or use a smaller model.")
            what = _("Out of GPU memory.") if device.name == "cuda" else _("Out of memory on {device}.")
            what = what.format(device=device.name)
            traceback.clear_frames(error.__traceback__)  # else the frames keep their tensors as long as the error lives
            raise OutOfMemory(what, found=error, fix=fix) from error
        if any(t in text for t in UNSUPPORTED):
            fix = _(
                "Set PYTORCH_ENABLE_MPS_FALLBACK=1 in the environment to compute it on the CPU "
                "(slow), or use --device cpu."
            )
            raise EngineError(_("An operation is not supported on this device."), found=error, fix=fix) from error
        if any(t in text for t in BROKEN):
            raise EngineError(_("The device failed."), found=error, fix=_("Resume with --resume.")) from error
        raise
