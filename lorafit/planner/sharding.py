"""When do several processes hold one base together, and what is said about them?"""

from dataclasses import replace

from lorafit.config import TrainConfig
from lorafit.hardware.detect import Machine
from lorafit.messages import _
from lorafit.planner.fast_path import GENERIC
from lorafit.planner.memory import Layout
from lorafit.planner.plan import Choice
from lorafit.units import bytes_text


def can_share(config: TrainConfig, quantization: str) -> bool:
    """Whether the base may be shared out: there are several processes, it is not quantised, and nobody said no."""
    return (config.processes or 1) > 1 and quantization == "none" and config.shard != "off"


def shared(base: Layout, config: TrainConfig) -> Layout:
    """`base` with its weights shared out over all processes; the fast path needs them whole."""
    return replace(base, shards=config.processes or 1, path=GENERIC)


def choices(config: TrainConfig, layout: Layout, peak_bytes: int, machine: Machine) -> list[Choice]:
    """What several processes do and take, in words; nothing about one alone. `machine` is what one of them has."""
    count = config.processes or 1
    if count == 1:
        return []
    text = _("{count} processes share every step and learn what one would learn; each takes {peak} of its GPU")
    if layout.device == "cpu":
        text = _(
            "{count} processes share every step and learn what one would learn; each has {cores} of {all} cores and takes "
            "{peak}, {sum} in all"
        )
    cores, peaks = max(machine.cores // machine.shared_by, 1), {"peak": bytes_text(peak_bytes)}
    peaks["sum"] = bytes_text(peak_bytes * machine.shared_by)
    found = [Choice("processes", str(count), text.format(count=count, cores=cores, all=machine.cores, **peaks))]
    if layout.shards > 1:
        reason = _("as asked") if config.shard == "on" else _("one process alone could not hold it")
        found.append(Choice("shard", "on", _("each process holds its share of the base: {why}").format(why=reason)))
    return found
