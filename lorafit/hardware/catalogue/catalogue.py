"""The whole catalog: the machines that a plan can be made for."""

from dataclasses import dataclass

from lorafit.hardware.catalogue import cpus
from lorafit.hardware.catalogue.chip import Chip
from lorafit.hardware.catalogue.clouds import INSTANCES, Instance
from lorafit.hardware.catalogue.find import GROUPS


@dataclass(frozen=True)
class Catalogue:
    """Chips and cloud machines, and float32 GFLOP/s per core with its source by a part of the CPU's name.

    `groups`: the chips by kind of machine, each group with its title.
    """

    groups: tuple[tuple[str, tuple[Chip, ...]], ...]
    cpus: dict[str, tuple[float, str]]
    instances: tuple[Instance, ...]

    @property
    def chips(self) -> tuple[Chip, ...]:
        return tuple(chip for _title, chips in self.groups for chip in chips)


def read_catalogue() -> Catalogue:
    """Return the catalog."""
    groups = tuple((title, tuple(chips)) for title, chips in GROUPS)
    return Catalogue(groups, dict(cpus.MEASURED), tuple(INSTANCES))
