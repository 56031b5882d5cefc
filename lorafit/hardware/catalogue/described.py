"""Machines by the figures of their GPU, for example "24GB 165TFLOPS 1008GB/s", "2x 48GB 155 TFLOPS 768 GB/s sm86 128GB RAM".

The figures stand in any order. The rate is the maker's rate of dense 16-bit matmuls with float32 accumulation.
"""

import re

from lorafit.errors import HardwareError
from lorafit.hardware.catalogue.apple import usable_share
from lorafit.hardware.catalogue.chip import Chip, rates_of
from lorafit.hardware.catalogue.nvidia import USABLE_SHARE
from lorafit.hardware.detect import Gpu, Machine
from lorafit.messages import _, listed, noted
from lorafit.units import GIB

FREE_SHARE = 0.75  # of a described machine's main memory; the system and a browser use the rest
PC_MEMORY_GB = 32  # main memory of a machine whose name gives none
CORES = 8  # of a machine whose name gives none
CAPABILITY = 8.0  # CUDA compute capability of a machine whose description gives none: the lowest with bfloat16
# Assumed: a chip with tensor cores computes float32 at a quarter of its 16-bit rate, and Apple's at the same rate.
FP32_SHARE = {"cuda": 0.25, "mps": 1.0}
SOURCE = noted("described by the user")
EXAMPLE = "24GB 165TFLOPS 1008GB/s"

NUMBER = r"(\d+(?:\.\d+)?)\s*"
# Each part of a description: its pattern, and the lowest and highest number that it can have.
PARTS: dict[str, tuple[str, float, float]] = {
    "bandwidth": (NUMBER + r"(gb/s|gbps|tb/s|tbps)", 5, 50_000),  # GB/s
    "rate": (NUMBER + r"tflop(?:s|/s)?", 0.1, 50_000),
    "main": (NUMBER + r"gi?b (?:ram|main memory)", 2, 16_384),  # GB
    "memory": (NUMBER + r"gi?b", 1, 1_024),  # GB
    "capability": (r"sm_?(\d{2,3})", 50, 200),
    "count": (r"(\d+)\s*x|x\s*(\d+)", 1, 64),
    "kind": (r"(cuda|mps)", 0, 0),
}
NEEDED = ("memory", "rate", "bandwidth")


def gives_figures(name: str) -> bool:
    """Return whether `name` describes a machine by figures: it has a matmul rate or a bandwidth."""
    return re.search(r"\d\s*(?:tflop|[gt]b/s|[gt]bps)", name.lower()) is not None


def described_machine(name: str) -> Machine:
    """Return the machine that `name` describes. Raise HardwareError for a missing, an impossible or an unknown part."""
    found = _parts(name)
    if missing := [part for part in NEEDED if part not in found]:
        raise _unreadable(name, _("missing: {parts}").format(parts=listed(_titles()[part] for part in missing)))
    kind = found.get("kind", "cuda")
    if kind == "mps" and ("capability" in found or int(found.get("count", 1)) > 1):
        raise _unreadable(name, _("a Mac has one GPU, without a CUDA capability"))
    memory, count = float(found["memory"]), int(found.get("count", 1))
    size = int(memory * GIB)
    main = int(float(found.get("main", memory if kind == "mps" else PC_MEMORY_GB)) * GIB)
    capability = None if kind == "mps" else float(found.get("capability", 10 * CAPABILITY)) / 10
    usable = usable_share(memory) if kind == "mps" else USABLE_SHARE
    title = f"{float(found['rate']):g} TFLOPS, {float(found['bandwidth']):g} GB/s"
    gpu = Gpu(title, kind, size, int(size * usable), capability, None, float(found["rate"]), float(found["bandwidth"]))
    if kind == "mps":
        return make_machine("Mac", size, (gpu,), CORES, system="Darwin", arch="arm64", macos="15")
    return make_machine("PC", main, (gpu,) * count, CORES)


def described_chip(gpu: Gpu) -> Chip | None:
    """Return the chip with the figures that the user gave for `gpu`, None if there are none."""
    if gpu.teraflops is None or gpu.gigabytes_per_second is None:
        return None
    fp32 = gpu.teraflops * FP32_SHARE[gpu.kind]
    rates = rates_of(gpu.compute_capability or CAPABILITY, fp32, gpu.teraflops)
    memory = (round(gpu.memory_bytes / GIB),)
    return Chip(gpu.name, gpu.kind, memory, gpu.gigabytes_per_second, rates, SOURCE, gpu.compute_capability)


def make_machine(
    name: str, memory: int, gpus: tuple[Gpu, ...], cores: int, system: str = "Linux", arch: str = "x86_64",
    macos: str | None = None,
) -> Machine:  # fmt: skip
    """Return a machine that is not this one, with FREE_SHARE of its main memory available."""
    return Machine(
        system=system, arch=arch, chip=name, cores=cores, memory_bytes=memory,
        available_bytes=int(memory * FREE_SHARE), cpu_bf16=False, gpus=gpus, rosetta=False, macos=macos,
        python="?", torch_version=None, torch_cuda="13" if gpus and gpus[0].kind == "cuda" else None, described=True,
    )  # fmt: skip


def _parts(name: str) -> dict[str, str]:
    """Return the parts of the description `name`, with numbers in TFLOP/s, GB and GB/s. Raise HardwareError."""
    left = re.sub(r"[\s,;+]+", " ", name.lower())
    left = re.sub(r"(\d) ?x ?(?=\d)", r"\1x ", left)  # "2x24GB"
    found: dict[str, str] = {}
    for part, (pattern, lowest, highest) in PARTS.items():
        matches = list(re.finditer(rf"(?<![\w.])(?:{pattern})(?![\w/])", left))
        if len(matches) > 1:
            raise _unreadable(name, _("given twice: {parts}").format(parts=_titles()[part]))
        if not matches:
            continue
        value = next(group for group in matches[0].groups() if group is not None)
        if part == "bandwidth" and matches[0][2].startswith("t"):
            value = f"{float(value) * 1000:g}"
        if part != "kind" and not lowest <= float(value) <= highest:
            text = _("{part}: {value} is not between {lowest:g} and {highest:g}")
            raise _unreadable(name, text.format(part=_titles()[part], value=value, lowest=lowest, highest=highest))
        found[part] = value
        left = left.replace(matches[0][0], " ", 1)
    if left.strip():
        raise _unreadable(name, _("not understood: `{words}`").format(words=" ".join(left.split())))
    return found


def _titles() -> dict[str, str]:
    return {
        "bandwidth": _("bandwidth (GB/s)"), "rate": _("matmul rate (TFLOPS)"), "main": _("main memory (GB RAM)"),
        "memory": _("GPU memory (GB)"), "capability": _("compute capability (sm89)"), "count": _("number of GPUs (2x)"),
        "kind": _("cuda or mps"),
    }  # fmt: skip


def _unreadable(name: str, why: str) -> HardwareError:
    return HardwareError(
        _("The description of the machine cannot be used: {why}.").format(why=why),
        where="--machine",
        found=name,
        fix=_(
            "Write memory, matmul rate and bandwidth of one GPU, for example {example}. After them can stand: {more}. "
            "The rate is that of dense 16-bit matmuls with float32 accumulation."
        ).format(example=f'`--machine "{EXAMPLE}"`', more=listed(("sm89", "cuda", "mps", "2x", "64GB RAM"))),
    )
