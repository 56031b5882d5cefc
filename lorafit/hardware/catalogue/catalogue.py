"""The whole catalog: the machines that a plan can be made for."""

from dataclasses import dataclass

from lorafit.hardware.catalogue import cpus
from lorafit.hardware.catalogue.chip import Chip
from lorafit.hardware.catalogue.clouds import INSTANCES, Instance
from lorafit.hardware.catalogue.find import CHIPS


@dataclass(frozen=True)
class Catalogue:
    """Chips and cloud machines, and float32 GFLOP/s per core with its source by a part of the CPU's name."""

    chips: tuple[Chip, ...]
    cpus: dict[str, tuple[float, str]]
    instances: tuple[Instance, ...]


def read_catalogue() -> Catalogue:
    """Return the catalog."""
    return Catalogue(tuple(CHIPS), dict(cpus.MEASURED), tuple(INSTANCES))
