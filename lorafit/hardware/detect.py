"""Detection of the machine: chip, available memory, GPUs and the installed PyTorch, without loading a tensor library.

All commands run through one function, `run(cmd)`, and all files are read below one folder, `root`: tests can simulate any
machine. An unknown value is None.
"""

import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from lorafit.errors import HardwareError
from lorafit.messages import _
from lorafit.units import KIB, MIB

Run = Callable[[list[str]], str | None]

CLOUD = "Colab (https://colab.research.google.com), Kaggle (https://www.kaggle.com)"
CPU_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # /proc/cpuinfo: x86, x86, ARM


@dataclass(frozen=True)
class Gpu:
    """One GPU. `available_bytes`: memory that this process can allocate; None until it is measured."""

    name: str
    kind: str  # cuda | mps
    memory_bytes: int
    available_bytes: int | None = None
    compute_capability: float | None = None  # CUDA, e.g. 8.6
    told_on: str | None = None  # date of the saved Metal limit, if `available_bytes` was not read in this run
    teraflops: float | None = None  # of 16-bit matmuls: only of a GPU that the user described, like the next
    gigabytes_per_second: float | None = None


@dataclass(frozen=True)
class Machine:
    """A machine, detected or from the catalogue.

    Memory is what this process may use: container limits count, swap does not.
    """

    system: str  # Linux | Darwin | Windows
    arch: str  # x86_64 | arm64 | aarch64
    chip: str
    cores: int
    memory_bytes: int
    available_bytes: int
    cpu_bf16: bool  # the CPU computes bf16 in hardware
    gpus: tuple[Gpu, ...]
    rosetta: bool
    macos: str | None
    python: str
    torch_version: str | None
    torch_cuda: str | None
    described: bool = False  # from the catalogue by name: not the machine that this process runs on
    pressed: bool = False  # macOS reports memory pressure
    shared_by: int = 1  # training processes here: `available_bytes` is the share of one, `cores` counts all

    def gpu(self, kind: str) -> Gpu | None:
        """Return the first GPU of `kind` ("cuda" or "mps"), or None."""
        return next((gpu for gpu in self.gpus if gpu.kind == kind), None)

    def to_json(self) -> str:
        """Return the machine as JSON text."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Machine":
        """Make a machine from the text of `to_json`."""
        facts: dict[str, Any] = json.loads(text)
        return cls(**{**facts, "gpus": tuple(Gpu(**gpu) for gpu in facts["gpus"])})


def command_output(cmd: list[str]) -> str | None:
    """Return the output of `cmd`, or None if `cmd` is missing, fails, or takes longer than five seconds."""
    try:
        done = subprocess.run(cmd, capture_output=True, encoding="utf-8", timeout=5, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def detect_machine(
    run: Run = command_output,
    root: Path = Path("/"),
    system: str = platform.system(),
    arch: str = platform.machine(),
    environ: Mapping[str, str] = os.environ,
) -> Machine:
    """Return the machine that this process runs on."""
    if system == "Darwin":
        return _mac(run, arch)
    total, available = _linux_memory(root) if system == "Linux" else _psutil_memory()
    cpu = _read(root / "proc/cpuinfo")
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpu, re.M)
    model = re.search(r"^model name\s*:\s*(.*)$", cpu, re.M)
    version, cuda = installed_torch()
    return Machine(
        system=system,
        arch=arch,
        chip=model[1] if model else platform.processor() or arch,
        cores=_cores(),
        memory_bytes=total,
        available_bytes=available,
        cpu_bf16=bool(flags and CPU_BF16_FLAGS & set(flags[1].split())),
        gpus=tuple(_nvidia_gpus(run, environ, total)),
        rosetta=False,
        macos=None,
        python=platform.python_version(),
        torch_version=version,
        torch_cuda=cuda,
    )


def check_machine(machine: Machine) -> None:
    """Raise HardwareError if no current PyTorch exists for the machine: Intel Macs, and Python under Rosetta.

    Only commands that need PyTorch call this function.
    """
    if machine.rosetta:
        raise HardwareError(
            _("This Python is built for Intel and runs under Rosetta: it cannot use PyTorch or the GPU."),
            found=f"{machine.chip}, Python {machine.python} ({machine.arch})",
            fix=_(
                "Install Python for Apple Silicon (`brew install python@3.13` with the Homebrew in "
                "/opt/homebrew, or the installer from https://www.python.org/downloads/macos), "
                "delete .venv, and run the command again in a Terminal where `arch` prints arm64."
            ),
        )
    if machine.system == "Darwin" and machine.arch != "arm64":
        raise HardwareError(
            _("PyTorch has not supported Intel Macs since version 2.2: training and chat cannot run on this machine."),
            found=f"{machine.chip}, macOS {machine.macos or '?'} ({machine.arch})",
            fix=_("Train in the cloud with the same commands and the same data: {cloud}.").format(cloud=CLOUD),
        )


def installed_torch() -> tuple[str | None, str | None]:
    """Return the versions of the installed PyTorch and of its CUDA build, read from files; None where missing."""
    try:
        dist = metadata.distribution("torch")
    except metadata.PackageNotFoundError:
        return None, None
    cuda = re.search(r"^cuda\b.*=\s*['\"](.+?)['\"]", _read(Path(str(dist.locate_file("torch/version.py")))), re.M)
    return dist.version, cuda[1] if cuda else None


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: only the cores that this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _psutil_memory() -> tuple[int, int]:
    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


# Linux


def _linux_memory(root: Path) -> tuple[int, int]:
    """Return (total, available) bytes for this process, within every cgroup and resource limit."""
    info: dict[str, str] = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _read(root / "proc/meminfo"), re.M))
    total, available = int(info["MemTotal"]) * KIB, int(info.get("MemAvailable", info["MemFree"])) * KIB
    for limit, free in (*_cgroup_limits(root), *_resource_limits(root)):
        total, available = min(total, limit), min(available, free)
    return total, max(available, 0)


def _resource_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield (limit, remaining) bytes of `ulimit -d`, which limits allocated memory.

    `ulimit -v` is ignored: it also counts mapped files.
    """
    limit = re.search(r"^Max data size\s+(\d+)\s", _read(root / "proc/self/limits"), re.M)
    used = re.search(r"^VmData:\s+(\d+) kB$", _read(root / "proc/self/status"), re.M)
    if limit:
        yield int(limit[1]), int(limit[1]) - (int(used[1]) * KIB if used else 0)


def _cgroup_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield (limit, remaining) bytes of this process's cgroup and of each cgroup above it, for cgroup v2 and v1."""
    groups = re.findall(r"^\d+:(.*?):(.*)$", _read(root / "proc/self/cgroup"), re.M)
    for controllers, path in groups:
        if controllers == "":
            mount, files = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # A container sees its own cgroup at the root of the mount, whatever path /proc/self/cgroup has.
        group = mount / path.lstrip("/")
        for folder in (group, *(p for p in group.parents if p.is_relative_to(mount))):
            yield from _cgroup_limit(folder, *files)


def _cgroup_limit(folder: Path, limit_file: str, usage_file: str, cache_key: str) -> Iterator[tuple[int, int]]:
    limit, usage = _read(folder / limit_file).strip(), _read(folder / usage_file).strip()
    if limit.isdigit() and usage.isdigit():
        cache = re.search(rf"^{cache_key} (\d+)$", _read(folder / "memory.stat"), re.M)
        reclaimable = int(cache[1]) if cache else 0
        yield int(limit), int(limit) - int(usage) + reclaimable


def _nvidia_gpus(run: Run, environ: Mapping[str, str], machine_bytes: int) -> Iterator[Gpu]:
    """Yield the GPUs of nvidia-smi, filtered and ordered by CUDA_VISIBLE_DEVICES (indices or UUIDs)."""
    query = "index,uuid,name,memory.total,memory.free"
    ask = ["nvidia-smi", "--format=csv,noheader,nounits"]
    # Drivers before 2021 do not know compute_cap and reject the whole query.
    listing = run([*ask, f"--query-gpu={query},compute_cap"]) or run([*ask, f"--query-gpu={query}"]) or ""
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines()]
    rows = [row for row in rows if len(row) >= 5]
    if (visible := environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        wanted = [name.strip() for name in visible.split(",")]
        rows = [row for name in wanted if name for row in rows if row[0] == name or row[1].startswith(name)]
    for row in rows:
        total = _mebibytes(row[3])  # None if the GPU shares the memory of the machine
        capability = float(row[5]) if len(row) > 5 and re.fullmatch(r"\d+\.\d+", row[5]) else None
        yield Gpu(row[2], "cuda", machine_bytes if total is None else total, _mebibytes(row[4]), capability)


def _mebibytes(cell: str) -> int | None:
    return int(cell) * MIB if cell.isdigit() else None


# macOS


def _mac(run: Run, arch: str) -> Machine:
    def sysctl(name: str) -> str:
        return run(["sysctl", "-n", name]) or ""

    chip = sysctl("machdep.cpu.brand_string") or "Apple processor"
    total = int(sysctl("hw.memsize") or psutil.virtual_memory().total)
    version, cuda = installed_torch()
    return Machine(
        system="Darwin",
        arch=arch,
        chip=chip,
        cores=int(sysctl("hw.perflevel0.logicalcpu") or os.cpu_count() or 1),  # performance cores; on Intel all cores
        memory_bytes=total,
        available_bytes=_mac_available(run),
        cpu_bf16=sysctl("hw.optional.arm.FEAT_BF16") == "1",
        # The engine reads the share of the memory that Metal allows; the share cannot be computed here.
        gpus=(Gpu(chip, "mps", total),) if arch == "arm64" else (),
        rosetta=arch != "arm64" and sysctl("sysctl.proc_translated") == "1",
        # platform.mac_ver() returns 10.16 or "16.0" in a Python built with an old SDK; this command does not.
        macos=run(["env", "SYSTEM_VERSION_COMPAT=0", "sw_vers", "-productVersion"]),
        python=platform.python_version(),
        torch_version=version,
        torch_cuda=cuda,
        pressed=_mac_pressed(run),
    )


def _mac_pressed(run: Run) -> bool:
    """Return whether macOS reports memory pressure: level 2 (warning) or 4 (critical)."""
    return run(["sysctl", "-n", "kern.memorystatus_vm_pressure_level"]) in ("2", "4")


def _mac_available(run: Run) -> int:
    """Return the bytes of free, speculative and inactive pages: available without compressing or swapping.

    Under memory pressure, inactive pages do not count, since other programs need them.
    """
    text = run(["vm_stat"]) or ""
    page = re.search(r"page size of (\d+) bytes", text)
    pages = dict(re.findall(r"^Pages (free|inactive|speculative):\s+(\d+)\.", text, re.M))
    if page is None or "free" not in pages:
        return _psutil_memory()[1]
    if _mac_pressed(run):
        pages.pop("inactive", None)
    return int(page[1]) * sum(int(count) for count in pages.values())
