"""How much memory may training take? What the device can still give, and the share of it that a plan may use.

Counted: free memory and caches that the system gives up, within every control group and resource limit above this process
(hardware.detect); what other processes hold of a GPU is gone. Not counted: swap, and what a Mac would have to compress.
"""

from dataclasses import replace

from lorafit.hardware.detect import Machine
from lorafit.messages import _

MARGIN = 0.9  # of the available memory; the rest is for what the formula does not know


def available_bytes(machine: Machine, device: str) -> int:
    """Memory that `device` can still give; for MPS two thirds of the RAM, a guess, until the engine has measured it."""
    gpu = machine.gpu(device)
    if gpu is None:
        return machine.available_bytes
    shared = device == "mps"
    given = gpu.available_bytes or (gpu.memory_bytes * 2 // 3 if shared else gpu.memory_bytes)
    # A Mac's GPU has the memory that its programs have; Metal's figure does not know what they hold.
    return min(given, machine.available_bytes) if shared and machine.pressed else given


def source_text(machine: Machine, device: str) -> str | None:
    """Where a Mac's figure is from, in words; other devices tell theirs when they are asked."""
    gpu = machine.gpu(device)
    if (
        gpu is None
        or device != "mps"
        or (machine.pressed and available_bytes(machine, device) == machine.available_bytes)
    ):
        return None
    if gpu.available_bytes is None:
        return _("a guess: two thirds of the memory; the first run asks Metal")
    if machine.described:
        return _("as seen on such Macs")
    return _("Metal's figure of {date}").format(date=gpu.told_on) if gpu.told_on else _("Metal's figure")


def share_of(machine: Machine, processes: int) -> Machine:
    """What each of several processes on `machine` has: a GPU of its own, or its share of the cores; and of the memory."""
    return replace(machine, available_bytes=machine.available_bytes // processes, shared_by=processes)


def usable_bytes(machine: Machine, device: str) -> int:
    """What a plan may come to."""
    return int(MARGIN * available_bytes(machine, device))
