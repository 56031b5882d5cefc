"""Machines by name, for example "M1 Pro 16GB", "RTX 3090", "p3.2xlarge" or "EPYC 8 cores 32GB".

The result is a `Machine` as detect_machine() would return it there.
"""

import difflib
import re

from lorafit.errors import HardwareError
from lorafit.hardware.catalogue.apple import APPLE, usable_share
from lorafit.hardware.catalogue.chip import Chip
from lorafit.hardware.catalogue.clouds import INSTANCES, Instance
from lorafit.hardware.catalogue.nvidia import NVIDIA, USABLE_SHARE
from lorafit.hardware.detect import Gpu, Machine
from lorafit.messages import _, listed
from lorafit.units import GIB

CHIPS = APPLE + NVIDIA
FREE_SHARE = 0.75  # of a described machine's main memory; the system and a browser use the rest
# Words that people and devices put before and after the name of a chip.
COMMON = r"(?:apple|i?mac|book|air|pro|mini|studio|chip|with|memory|unified|nvidia|geforce|tesla|gpu|pcie|sxm\d?|nvl|hbm\de?)*"
PC_MEMORY_GB = 32  # main memory of a machine whose name gives none


def machine_named(name: str) -> Machine:
    """Return the machine named `name`. Raise HardwareError, with similar names or sizes, for an unknown one."""
    wanted = _plain(name)
    for instance in INSTANCES:
        if _plain(instance.name) == wanted:
            return _rented(instance)
    size = re.search(r"(?<!\w)(\d+)\s*gi?b$", wanted)
    if cores := re.search(r"(?<!\w)(\d+)\s*cores?(?!\w)", wanted):
        return _processor(name[: cores.start()].strip(), int(cores[1]), int(size[1]) if size else PC_MEMORY_GB)
    chip = _chip(words := wanted[: size.start()] if size else wanted)
    if chip is None or not _says_no_more(words, chip):
        raise _unknown(name)
    memory = int(size[1]) if size else chip.memory_gb[0]
    if memory not in chip.memory_gb:
        sizes = listed(f"{gb} GB" for gb in chip.memory_gb)
        raise HardwareError(
            _("{chip} was never sold with {memory} GB.").format(chip=chip.name, memory=memory),
            found=name,
            fix=_("Use one of the sizes it was sold with: {sizes}.").format(sizes=sizes),
        )
    return _mac(chip, memory) if chip.kind == "mps" else _pc(chip, memory)


def chip_of(name: str) -> Chip | None:
    """Return the chip for a device name such as "NVIDIA GeForce RTX 3090", "Tesla T4" or "Apple M2 Max", or None."""
    return _chip(_plain(name))


def names() -> list[str]:
    """Return the names of all chips, with each memory size that was sold, and of all rented machines."""
    chips = [f"{chip.name} {gb}GB" for chip in CHIPS for gb in chip.memory_gb]
    return chips + [instance.name for instance in INSTANCES]


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", " ", name.strip().lower())


def _chip(words: str) -> Chip | None:
    """Return the chip with the longest name contained in `words`: "RTX 3080 Ti" does not match RTX 3080."""
    joined = re.sub(rf"^{COMMON}(?=m\d)", "", re.sub(r"[^a-z0-9]", "", words))
    for chip in sorted(CHIPS, key=lambda chip: -len(chip.name)):
        plain = _joined(chip)
        if re.search(rf"(?<![a-z]){plain}(?!\d)" if plain[0] in "m" else re.escape(plain), joined):
            return chip
    return None


def _joined(chip: Chip) -> str:
    return re.sub(r"[^a-z0-9]", "", chip.name.lower().removeprefix("apple "))


def _says_no_more(words: str, chip: Chip) -> bool:
    """Return whether `words` holds only the chip's name and words of COMMON: "M1 Prro" is not an M1."""
    rest = re.sub(r"[^a-z0-9]", "", words).replace(_joined(chip), "", 1)
    return re.fullmatch(COMMON, rest) is not None


def _mac(chip: Chip, memory_gb: int) -> Machine:
    total = memory_gb * GIB
    gpu = Gpu(chip.name, "mps", total, int(total * usable_share(memory_gb)))
    facts = {"system": "Darwin", "arch": "arm64", "macos": "15"}
    return _machine(chip.name, total, (gpu,), cores=8, **facts)


def _pc(chip: Chip, memory_gb: int) -> Machine:
    gpu = Gpu(chip.name, "cuda", memory_gb * GIB, int(memory_gb * GIB * USABLE_SHARE), chip.capability)
    return _machine("PC", PC_MEMORY_GB * GIB, (gpu,), cores=8)


def _processor(chip: str, cores: int, memory_gb: int) -> Machine:
    return _machine(chip or "CPU", memory_gb * GIB, (), cores)


def _rented(instance: Instance) -> Machine:
    chip = next(chip for chip in CHIPS if chip.name == instance.chip)
    total = instance.gpu_gb * GIB
    gpu = Gpu(chip.name, "cuda", total, int(total * USABLE_SHARE), chip.capability)
    return _machine(instance.name, instance.memory_gb * GIB, (gpu,) * instance.gpus, instance.cores)


def _machine(
    name: str, memory: int, gpus: tuple[Gpu, ...], cores: int, system: str = "Linux", arch: str = "x86_64",
    macos: str | None = None,
) -> Machine:  # fmt: skip
    return Machine(
        system=system, arch=arch, chip=name, cores=cores, memory_bytes=memory,
        available_bytes=int(memory * FREE_SHARE), cpu_bf16=False, gpus=gpus, rosetta=False, macos=macos,
        python="?", torch_version=None, torch_cuda="13" if gpus and gpus[0].kind == "cuda" else None, described=True,
    )  # fmt: skip


def _unknown(name: str) -> HardwareError:
    near = difflib.get_close_matches(name, names(), n=3, cutoff=0.3)
    return HardwareError(
        _("Unknown machine `{name}`.").format(name=name),
        found=name,
        fix=_("Choose a machine from `lorafit machines`; similar names: {names}.").format(names=listed(near))
        if near
        else _("Choose a machine from `lorafit machines`."),
    )
