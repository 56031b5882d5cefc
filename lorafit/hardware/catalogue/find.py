"""Machines by name, for example "M1 Pro 16GB", "RTX 3090", "p3.2xlarge" or "EPYC 8 cores 32GB".

The result is a `Machine` as detect_machine() would return it there. described.py reads machines by their figures.
"""

import difflib
import re

from lorafit.errors import HardwareError
from lorafit.hardware.catalogue.apple import APPLE, usable_share
from lorafit.hardware.catalogue.chip import Chip
from lorafit.hardware.catalogue.clouds import INSTANCES, Instance
from lorafit.hardware.catalogue.described import (
    CORES,
    FREE_SHARE,
    PC_MEMORY_GB,
    described_chip,
    described_machine,
    gives_figures,
    make_machine,
)
from lorafit.hardware.catalogue.geforce import GEFORCE, LAPTOP
from lorafit.hardware.catalogue.nvidia import DATA_CENTER, USABLE_SHARE, WORKSTATION
from lorafit.hardware.catalogue.unified import UNIFIED
from lorafit.hardware.detect import Gpu, Machine
from lorafit.messages import _, listed, noted, sentences
from lorafit.units import GIB

GROUPS = (
    (noted("Apple Silicon"), APPLE),
    (noted("NVIDIA, data center"), DATA_CENTER),
    (noted("NVIDIA, workstation"), WORKSTATION),
    (noted("NVIDIA GeForce"), GEFORCE),
    (noted("NVIDIA GeForce, laptop"), LAPTOP),
    (noted("NVIDIA, memory shared with the CPU"), UNIFIED),
)
CHIPS = [chip for _title, chips in GROUPS for chip in chips]
SIZE = re.compile(r"(?<![\w.])(\d+) ?gi?b?(?!\w)")
COUNT = re.compile(r"^(\d{1,2}) ?(?:[x×*]|卡) ?|(?:(?<=[\dgb])| )[x×*] ?(\d{1,2})$")  # "2x4090", "A100 80GB x 8"
# Words that people, drivers and systems put before and after the name of a chip.
COMMON = re.compile(
    r"\b(?:macbook(?: pro| air)?(?: 1[3-6](?: inch)?)?|\d+ ?cores?|imac(?: pro)?|mac(?: mini| studio| pro)?|apple|chip|with|unified|memory|virtual|nvidia|"
    r"geforce|tesla|jetson|gpu|nvgpu|dgx spark|generation|blackwell|workstation|edition)\b"
)
FORM = re.compile(r"\b(?:pcie|sxm\d?|nvl|hbm\de?|active|ac)\b")  # not in the name of a chip that has one form only


def machine_named(name: str) -> Machine:
    """Return the machine that `name` names or describes.

    Raise HardwareError, with similar names or sizes, for an unknown one, and for figures that no machine has.
    """
    wanted = _plain(name)
    for instance in INSTANCES:
        if _plain(instance.name) == wanted:
            return _rented(instance)
    if gives_figures(name):
        return described_machine(name)
    wanted, count = _without_count(wanted)
    size, chips = SIZE.search(wanted), _chips(wanted)
    if not (size or chips) and (size := re.search(r" (\d+)$", wanted)):  # "M2 Ultra 192"
        chips = _chips(wanted[: size.start()])
    if (cores := re.search(r"(?<!\w)(\d+)\s*cores?(?!\w)", wanted)) and not chips:
        return _processor(name[: cores.start()].strip(), int(cores[1]), int(size[1]) if size else PC_MEMORY_GB)
    if not chips or not count or (count > 1 and (chips[0].kind == "mps" or chips[0].unified)):
        raise _unknown(name)
    sizes = [gb for chip in chips if chip.name == chips[0].name for gb in chip.memory_gb]
    memory = int(size[1]) if size else min(sizes)
    if not any(memory in chip.memory_gb for chip in chips):
        raise HardwareError(
            _("{chip} was never sold with {memory} GB.").format(chip=chips[0].name, memory=memory),
            found=name,
            fix=_("Use one of the sizes it was sold with: {sizes}.").format(sizes=listed(f"{gb} GB" for gb in sizes)),
        )
    chip = _nearest(chips, memory)
    return _mac(chip, memory) if chip.kind == "mps" else _pc(chip, memory, count)


def chip_of(name: str, memory_bytes: int | None = None) -> Chip | None:
    """Return the chip for a device name such as "NVIDIA GeForce RTX 3090", "Tesla T4" or "Apple M2 Max", or None.

    `memory_bytes` tells apart versions with one name, such as the RTX 3060 with 8 and 12 GB.
    """
    chips = _chips(_plain(name))
    if not chips:
        return None
    return chips[0] if memory_bytes is None else _nearest(chips, memory_bytes / GIB)


def chip_in(gpu: Gpu) -> Chip | None:
    """Return the chip of `gpu`: its described figures, else the catalogue's, else None."""
    return described_chip(gpu) or chip_of(gpu.name, gpu.memory_bytes)


def names() -> list[str]:
    """Return the names of all chips, with each memory size that was sold, and of all rented machines."""
    chips = [f"{chip.name} {gb}GB" for chip in CHIPS for gb in chip.memory_gb]
    return chips + [instance.name for instance in INSTANCES]


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", " ", name.strip().lower())


def _without_count(words: str) -> tuple[str, int]:
    """Return `words` without the number of equal GPUs that they begin or end with, and the number; else 1."""
    found = COUNT.search(words)
    return (COUNT.sub("", words, count=1), int(found[1] or found[2])) if found else (words, 1)


def _joined(words: str) -> str:
    return re.sub(r"[^a-z0-9]", "", words)


def _chips(words: str) -> list[Chip]:
    """Return the chips whose name is all that `words` hold besides memory sizes and words of COMMON and FORM.

    So an "RTX 3080 Ti" is not an RTX 3080, a "T400" is not a T4, and a part of an A100 (MIG) is not an A100.
    """
    bare = COMMON.sub(" ", SIZE.sub(" ", re.sub(r"[^a-z0-9. ]", " ", words)))
    bare = re.sub(r"\bmobile\b", "laptop", bare)
    for key in (_joined(bare), _joined(FORM.sub(" ", bare))):
        if found := [chip for chip in CHIPS if key in _keys(chip)]:
            return found
    return []


def _keys(chip: Chip) -> set[str]:
    """Return the names of `chip` without spaces: "RTX" and "GTX" may be left out."""
    full = _joined(COMMON.sub(" ", chip.name.lower()))
    return {full, re.sub(r"^[rg]tx", "", full), chip.reported.lower()} - {""}


def _nearest(chips: list[Chip], memory_gb: float) -> Chip:
    """Return the chip with the memory size nearest to `memory_gb`; the last of several, which is the slowest."""
    return min(reversed(chips), key=lambda chip: min(abs(gb - memory_gb) for gb in chip.memory_gb))


def _mac(chip: Chip, memory_gb: int) -> Machine:
    total = memory_gb * GIB
    gpu = Gpu(chip.name, "mps", total, int(total * usable_share(memory_gb)))
    facts = {"system": "Darwin", "arch": "arm64", "macos": "15"}
    return make_machine(chip.name, total, (gpu,), CORES, **facts)


def _pc(chip: Chip, memory_gb: int, count: int) -> Machine:
    size = memory_gb * GIB
    if chip.unified:  # the GPU takes what the system leaves of the main memory
        gpu = Gpu(chip.name, "cuda", size, int(size * FREE_SHARE), chip.capability)
        return make_machine(chip.name, size, (gpu,), CORES, arch="aarch64")
    gpu = Gpu(chip.name, "cuda", size, int(size * USABLE_SHARE), chip.capability)
    return make_machine("PC", PC_MEMORY_GB * GIB, (gpu,) * count, CORES)


def _processor(chip: str, cores: int, memory_gb: int) -> Machine:
    return make_machine(chip or "CPU", memory_gb * GIB, (), cores)


def _rented(instance: Instance) -> Machine:
    chip = _nearest([chip for chip in CHIPS if chip.name == instance.chip], instance.gpu_gb)
    total = instance.gpu_gb * GIB
    gpu = Gpu(chip.name, "cuda", total, int(total * USABLE_SHARE), chip.capability)
    return make_machine(instance.name, instance.memory_gb * GIB, (gpu,) * instance.gpus, instance.cores)


def _unknown(name: str) -> HardwareError:
    near = difflib.get_close_matches(name, names(), n=3, cutoff=0.3)
    return HardwareError(
        _("Unknown machine `{name}`.").format(name=name),
        found=name,
        fix=sentences(
            [
                _("Choose a machine from `lorafit machines`; similar names: {names}.").format(names=listed(near))
                if near
                else _("Choose a machine from `lorafit machines`."),
                _("Or describe it by the memory, matmul rate and bandwidth of its GPU: {example}").format(
                    example='`--machine "24GB 165TFLOPS 1008GB/s"`'
                ),
                _("A CPU is described by its cores and memory: {example}").format(
                    example='`--machine "16 cores 64GB"`'
                ),
            ]
        ),
    )
