"""The device: its name and memory, the rates that it reaches in matmuls and copies, and the engine's self-test."""

import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata

import torch

from card.settings import Line, Settings, worded
from lorafit.engines.torch import self_check
from lorafit.hardware.catalogue.find import chip_of
from peers.protocol import synchronise

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIZE, TINY_SIZE = 8192, 128  # of the square matrices
ROUNDS = 5
PACKAGES = ("transformers", "peft", "accelerate", "trl", "bitsandbytes")


def lines(settings: Settings) -> Iterator[Line]:
    """Yield the device's facts, its self-test in each precision, its matmul rates, its copy rate and its context."""
    yield {"what": "device", **_device(settings.device)}
    for precision, dtype in DTYPES.items():
        try:
            self_check.self_test(settings.device, dtype)
            yield {"what": "self-test", "precision": precision, "ok": True}
        except Exception as error:
            yield {"what": "self-test", "precision": precision, "ok": False, "error": worded(error)}
    for precision, dtype in DTYPES.items():
        yield {"what": "matmul", "precision": precision, **_matmul(settings, dtype)}
    yield {"what": "copy", **_copy(settings)}
    if settings.device == "cuda":
        yield {"what": "context", "bytes": _context_bytes()}


def stated_teraflops(name: str, precision: str) -> float | None:
    """Return the maker's dense rate of the device `name`, None if the catalog does not have it."""
    chip = chip_of(name)
    return None if chip is None else chip.teraflops.get(precision)


def _device(device: str) -> Line:
    facts: Line = {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.version.cuda}
    facts |= {name: version for name in PACKAGES if (version := _version(name))}
    if device != "cuda":
        return {**facts, "name": "CPU"}
    found = torch.cuda.get_device_properties(0)
    stated = {p: stated_teraflops(found.name, p) for p in DTYPES}
    return {
        **facts,
        "name": found.name,
        "memory_bytes": found.total_memory,
        "capability": f"{found.major}.{found.minor}",
        "stated_teraflops": stated,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _context_bytes() -> int:
    """Return the bytes on the device that no tensor of PyTorch takes: context, kernels and workspaces, after matmuls."""
    free, whole = torch.cuda.mem_get_info()
    return whole - free - torch.cuda.memory_reserved()


def _best_seconds(run: Callable[[], object], device: str) -> float:
    """Return the shortest time of `run` over ROUNDS, after one run that is not timed."""
    times = []
    for _round in range(ROUNDS + 1):
        synchronise(device)
        began = time.perf_counter()
        run()
        synchronise(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _matmul(settings: Settings, dtype: torch.dtype) -> Line:
    size = TINY_SIZE if settings.tiny else SIZE
    a, b = (torch.randn(size, size, device=settings.device).to(dtype) for _ in range(2))
    seconds = _best_seconds(lambda: a @ b, settings.device)
    return {"size": size, "teraflops": 2 * size**3 / seconds / 1e12}


def _copy(settings: Settings) -> Line:
    elements = 2**16 if settings.tiny else 2**29
    source = torch.ones(elements, dtype=torch.bfloat16, device=settings.device)
    target = torch.empty_like(source)
    seconds = _best_seconds(lambda: target.copy_(source), settings.device)
    return {"gigabytes_per_second": 2 * 2 * elements / seconds / 1e9}
