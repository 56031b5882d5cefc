"""Sharding of the base weights over several processes (FSDP), and the texts on processes for the user."""

from dataclasses import replace

from lorafit.config import TrainConfig
from lorafit.hardware.detect import Machine
from lorafit.messages import _
from lorafit.planner.fast_path import GENERIC
from lorafit.planner.memory import Layout
from lorafit.planner.plan import Choice
from lorafit.units import bytes_text


def can_shard(config: TrainConfig, quantization: str) -> bool:
    """Return whether sharding is possible: several processes, a base that is not quantized, and --shard is not off."""
    return (config.processes or 1) > 1 and quantization == "none" and config.shard != "off"


def sharded_layout(base: Layout, config: TrainConfig) -> Layout:
    """Return `base` sharded over all processes, on the generic path: the fast path needs whole weights."""
    return replace(base, shards=config.processes or 1, path=GENERIC)


def choices(config: TrainConfig, layout: Layout, peak_bytes: int, machine: Machine) -> list[Choice]:
    """Return the choices of `processes` and `shard`; an empty list for one process.

    `machine` is the machine as one of the processes sees it (memory_budget.per_process). `peak_bytes`: of one process.
    """
    count = config.processes or 1
    if count == 1:
        return []
    text = _("{count} processes share each step, with the same result as one process; GPU memory per process: {peak}")
    if layout.device == "cpu":
        text = _(
            "{count} processes share each step, with the same result as one process; per "
            "process: {cores} of {all} cores and {peak} of memory; {sum} in total"
        )
    cores, peaks = max(machine.cores // machine.shared_by, 1), {"peak": bytes_text(peak_bytes)}
    peaks["sum"] = bytes_text(peak_bytes * machine.shared_by)
    found = [Choice("processes", str(count), text.format(count=count, cores=cores, all=machine.cores, **peaks))]
    if layout.shards > 1:
        reason = _("as requested") if config.shard == "on" else _("one process cannot hold the whole base model")
        found.append(Choice("shard", "on", _("each process holds a part of the base model: {why}").format(why=reason)))
    return found
