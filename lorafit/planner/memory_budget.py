"""Memory limit for a plan: the memory that a device can still allocate, and the share of it that a plan may use.

Available memory is free memory plus caches that the system can drop, within every cgroup and resource limit above this
process (hardware.detect). GPU memory held by other processes, swap, and memory that macOS would have to compress do not
count as available.
"""

from dataclasses import replace

from lorafit.hardware.detect import Machine
from lorafit.messages import _

MARGIN = 0.9  # share of the available memory that a plan may use; the rest covers errors of the formula


def available_bytes(machine: Machine, device: str) -> int:
    """Return the bytes that `device` can still allocate.

    For MPS this is two thirds of the RAM, a guess, until the engine has read Metal's limit. A CUDA GPU that reports no free
    memory shares the machine's, for example GB10.
    """
    gpu = machine.gpu(device)
    if gpu is None:
        return machine.available_bytes
    shared = device == "mps"
    given = gpu.available_bytes or (gpu.memory_bytes * 2 // 3 if shared else machine.available_bytes)
    # A Mac's GPU shares memory with all programs, and Metal's limit does not count the memory that they use.
    return min(given, machine.available_bytes) if shared and machine.pressed else given


def source_text(machine: Machine, device: str) -> str | None:
    """Return the source of a Mac's memory limit for the user; None for other devices, which report free memory."""
    gpu = machine.gpu(device)
    if (
        gpu is None
        or device != "mps"
        or (machine.pressed and available_bytes(machine, device) == machine.available_bytes)
    ):
        return None
    if gpu.available_bytes is None:
        return _("an estimate: two thirds of the memory; the first run reads Metal's limit")
    if machine.described:
        return _("as observed on such Macs")
    return _("Metal's limit, read on {date}").format(date=gpu.told_on) if gpu.told_on else _("Metal's limit")


def per_process(machine: Machine, processes: int) -> Machine:
    """Return `machine` as each of `processes` processes sees it.

    Each process has an equal share of the main memory. On a CPU, the processes share the cores; otherwise each has its own
    GPU.
    """
    return replace(machine, available_bytes=machine.available_bytes // processes, shared_by=processes)


def usable_bytes(machine: Machine, device: str) -> int:
    """Return the bytes that a plan may use on `device`."""
    return int(MARGIN * available_bytes(machine, device))
