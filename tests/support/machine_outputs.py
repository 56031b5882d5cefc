"""Outputs of the tools and contents of the files of described machines: sysctl, nvidia-smi, /proc."""

from collections.abc import Mapping
from pathlib import Path

from lorafit.hardware.detect import Machine, Run, detect_machine
from lorafit.units import GIB

M1 = {
    "sysctl -n machdep.cpu.brand_string": "Apple M1",
    "sysctl -n hw.memsize": str(8 * GIB),
    "sysctl -n hw.perflevel0.logicalcpu": "4",
    "sysctl -n sysctl.proc_translated": "0",
    "env SYSTEM_VERSION_COMPAT=0 sw_vers -productVersion": "15.6.1",
    "vm_stat": (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                               10000.\n"
        "Pages active:                            150000.\n"
        "Pages inactive:                          100000.\n"
        "Pages speculative:                         2000.\n"
        "Pages wired down:                         90000.\n"
    ),
}


M2_MAX = M1 | {
    "sysctl -n machdep.cpu.brand_string": "Apple M2 Max",
    "sysctl -n hw.memsize": str(32 * GIB),
    "sysctl -n hw.perflevel0.logicalcpu": "8",
    "sysctl -n hw.optional.arm.FEAT_BF16": "1",
}


INTEL = {
    "sysctl -n machdep.cpu.brand_string": "Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz",
    "sysctl -n hw.memsize": str(16 * GIB),
}


ROSETTA = M1 | {"sysctl -n machdep.cpu.brand_string": "VirtualApple @ 2.50GHz", "sysctl -n sysctl.proc_translated": "1"}


SMI = "nvidia-smi --format=csv,noheader,nounits --query-gpu=index,uuid,name,memory.total,memory.free"


RTX_3090 = {f"{SMI},compute_cap": "0, GPU-aa, NVIDIA GeForce RTX 3090, 24576, 24000, 8.6"}


T4 = {f"{SMI},compute_cap": "0, GPU-bb, Tesla T4, 15360, 15100, 7.5"}


P100 = {SMI: "0, GPU-cc, Tesla P100-PCIE-16GB, 16280, 16000"}  # its driver does not report compute_cap


TWO = {
    f"{SMI},compute_cap": (
        "0, GPU-aa, NVIDIA GeForce RTX 3090, 24576, 24000, 8.6\n1, GPU-dd, NVIDIA A100-SXM4-80GB, 81920, 81000, 8.0"
    )
}


SPARK = {f"{SMI},compute_cap": "0, GPU-ee, NVIDIA GB10, [N/A], [N/A], 12.1"}


MEMINFO = (
    "MemTotal:       33554432 kB\nMemFree:         1048576 kB\nMemAvailable:   16777216 kB\nSwapFree: 99999999 kB\n"
)


CPUINFO = "processor\t: 0\nmodel name\t: AMD Ryzen 9\nflags\t\t: fpu sse2 avx2 {flags}\n"


def prints(outputs: Mapping[str, str]) -> Run:
    """Return a function that answers a command from `outputs`, and None if the command is not in it."""
    return lambda cmd: outputs.get(" ".join(cmd))


def linux_files(root: Path, files: Mapping[str, str] | None = None, flags: str = "") -> Path:
    """Write the /proc files of a Linux machine and `files` below `root`, and return `root`. `flags`: more CPU flags."""
    for name, text in {"proc/meminfo": MEMINFO, "proc/cpuinfo": CPUINFO.format(flags=flags), **(files or {})}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def mac(outputs: Mapping[str, str], arch: str = "arm64") -> Machine:
    """Detect a Mac whose commands print `outputs`."""
    return detect_machine(prints(outputs), Path("/nowhere"), "Darwin", arch)


def linux(root: Path, outputs: Mapping[str, str], environ: Mapping[str, str] | None = None) -> Machine:
    """Detect a Linux machine whose commands print `outputs`; its files are written below `root`."""
    return detect_machine(prints(outputs), linux_files(root), "Linux", "x86_64", environ or {})
