"""Choices of glibc's allocator profile and of torch.compile, which change only speed and memory.

The numbers are measured (docs/log.md). Without a measurement for the device, torch.compile is not chosen automatically.
"""

from lorafit.config import TrainConfig
from lorafit.hardware.detect import Machine
from lorafit.messages import _
from lorafit.planner.fast_path import GENERIC
from lorafit.planner.plan import Choice

AMPLE_MEMORY_SHARE = (
    0.6  # of the available memory: below this share, the memory that the fast profile keeps does no harm
)
# Start-up seconds of torch.compile per layer, and the share of the training time that it saves, where measured.
COMPILE_SECONDS = {"cpu": 46.0}
COMPILE_SAVES = {"cpu": 0.01}


def choose_allocator(config: TrainConfig, machine: Machine, device: str, peak_bytes: int, available: int) -> Choice:
    """Choose the allocator profile: the requested one, else "fast" where memory is ample and "lean" where it is not.

    Only glibc on Linux has profiles, and they matter only on the CPU: elsewhere the choice is "default". `peak_bytes`: with
    the "fast" profile. `available`: bytes.
    """
    if config.allocator != "auto":
        return Choice("allocator", config.allocator, _("as requested"))
    if machine.system != "Linux" or device != "cpu":
        return Choice("allocator", "default", _("the system's default"))
    if peak_bytes <= AMPLE_MEMORY_SHARE * available:
        return Choice("allocator", "fast", _("plenty of memory: freed memory is kept for reuse"))
    return Choice("allocator", "lean", _("memory is tight: freed memory is returned to the system at once"))


def choose_compile(config: TrainConfig, device: str, path: str, seconds: float) -> Choice:
    """Choose whether to compile each layer of the generic path with torch.compile.

    Compilation is worth it when `seconds` (of the run) x the saved share exceeds the seconds of compilation.
    """
    if path != GENERIC:
        return Choice("compile", "off", _("the fast path has nothing to compile"))
    if config.compile != "auto":
        return Choice("compile", config.compile, _("as requested"))
    if device not in COMPILE_SAVES:
        return Choice("compile", "off", _("not measured on this device (`--compile on` tries it)"))
    pays = seconds * COMPILE_SAVES[device] > COMPILE_SECONDS[device]
    text = _("compiling takes {cost:.0f} s and saves {saved:,.0f} of {seconds:,.0f} s")
    facts = {"seconds": seconds, "saved": seconds * COMPILE_SAVES[device], "cost": COMPILE_SECONDS[device]}
    return Choice("compile", "on" if pays else "off", text.format(**facts))
