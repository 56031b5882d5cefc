"""What else makes the same steps faster or leaner? The C library's allocator, and compiled layers.

Neither changes what is learned. Numbers are measured ones (docs/log.md), or the choice is not made by itself.
"""

from lorafit.config import TrainConfig
from lorafit.hardware.detect import Machine
from lorafit.messages import _
from lorafit.planner.fast_path import GENERIC
from lorafit.planner.plan import Choice

COMFORT = 0.6  # of the available memory: below it there is room for what a fast allocator keeps
# What torch.compile per layer costs at the start, and which share of the time it then saves, where it was measured.
COMPILE_SECONDS = {"cpu": 46.0}
COMPILE_SAVES = {"cpu": 0.01}


def choose_allocator(config: TrainConfig, machine: Machine, device: str, peak_bytes: int, available: int) -> Choice:
    """fast where memory is ample, lean where it is not; glibc alone can be told, and it matters where the CPU computes."""
    if config.allocator != "auto":
        return Choice("allocator", config.allocator, _("as asked"))
    if machine.system != "Linux" or device != "cpu":
        return Choice("allocator", "default", _("the system's own"))
    if peak_bytes <= COMFORT * available:
        return Choice("allocator", "fast", _("memory is ample: what was taken once is kept"))
    return Choice("allocator", "lean", _("memory is scarce: what is not needed is given back at once"))


def choose_compile(config: TrainConfig, device: str, path: str, seconds: float) -> Choice:
    """Whether each layer is compiled. It pays when seconds x the share it saves is more than compiling takes."""
    if path != GENERIC:
        return Choice("compile", "off", _("the own packed decoder has nothing to compile"))
    if config.compile != "auto":
        return Choice("compile", config.compile, _("as asked"))
    if device not in COMPILE_SAVES:
        return Choice("compile", "off", _("not measured on this device; `--compile on` tries it"))
    pays = seconds * COMPILE_SAVES[device] > COMPILE_SECONDS[device]
    text = _("of {seconds:,.0f} s it would save {saved:,.0f} s and take {cost:.0f} s first")
    facts = {"seconds": seconds, "saved": seconds * COMPILE_SAVES[device], "cost": COMPILE_SECONDS[device]}
    return Choice("compile", "on" if pays else "off", text.format(**facts))
