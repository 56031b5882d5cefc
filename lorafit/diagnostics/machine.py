"""Checks of the machine and of its Python, and the pip commands of the fixes."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from lorafit.diagnostics.finding import Finding
from lorafit.errors import HardwareError
from lorafit.hardware import detect
from lorafit.hardware.detect import Gpu, Machine, Run
from lorafit.messages import _, phrases
from lorafit.units import bytes_text

# Environment variables that affect where and how training runs. None of them holds a secret.
REPORTED_VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE", "LORAFIT_CACHE", "MLX_ENABLE_TF32",
    "OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ENABLE_MPS_FALLBACK", "PYTORCH_MPS_HIGH_WATERMARK_RATIO",
)  # fmt: skip


def machine_findings(
    machine: Machine, driver: str | None, environ: Mapping[str, str] = os.environ
) -> Iterator[Finding]:
    """Yield processor, system, memory, GPUs, NVIDIA driver and Python. Bad if no PyTorch exists for this machine."""
    cores = _("cores: {count}").format(count=machine.cores)
    yield Finding("machine", _("CPU"), phrases([machine.chip, cores, machine.arch]))
    yield Finding("machine", _("system"), f"macOS {machine.macos or '?'}" if machine.macos else machine.system)
    memory = _("{total}, {available} available (without swap)")
    sizes = {"total": bytes_text(machine.memory_bytes), "available": bytes_text(machine.available_bytes)}
    yield Finding("machine", _("memory"), memory.format(**sizes))
    for gpu in machine.gpus:
        yield Finding("machine", _("GPU"), _gpu_text(gpu))
    if not machine.gpus:
        yield Finding("machine", _("GPU"), _("no usable GPU"))
    if driver is not None:
        yield Finding("machine", _("NVIDIA driver"), driver)
    yield Finding("machine", "Python", _("{version} for {arch} ({path})").format(
        version=machine.python, arch=machine.arch, path=sys.executable
    ))  # fmt: skip
    if told := [f"{name}={environ[name]}" for name in REPORTED_VARIABLES if name in environ]:
        yield Finding("machine", _("environment"), " ".join(told))
    try:
        detect.check_machine(machine)
    except HardwareError as error:
        yield Finding("machine", _("Rosetta") if machine.rosetta else _("Intel Mac"), error.what, "bad", error.fix)


def nvidia_driver(run: Run) -> str | None:
    """Return the version of the NVIDIA driver, or None if nvidia-smi does not answer."""
    answer = run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return answer.splitlines()[0].strip() if answer else None


def pip_install(*words: str) -> str:
    """Return the shell command that installs `words` into this Python environment."""
    return shlex.join([_python(), "-m", "pip", "install", *words])


def pip_reinstall_torch(*words: str) -> str:
    """Return the shell command that uninstalls torch and then installs `words`.

    Without the uninstall, pip would keep an installed build whose version satisfies the requirement.
    """
    return f"{shlex.join([_python(), '-m', 'pip', 'uninstall', '-y', 'torch'])} && {pip_install(*words)}"


def _python() -> str:
    ours, found = Path(sys.executable), shutil.which("python")
    if found and Path(found).absolute() == ours.absolute():
        return "python"
    return str(ours.relative_to(Path.cwd()) if ours.is_relative_to(Path.cwd()) else ours)


def _gpu_text(gpu: Gpu) -> str:
    parts = [gpu.name, gpu.kind, bytes_text(gpu.memory_bytes)]
    if gpu.kind == "mps":
        parts[-1] = _("unified memory")
    if gpu.available_bytes is not None:
        parts.append(_("{size} available").format(size=bytes_text(gpu.available_bytes)))
    if gpu.compute_capability is not None:
        parts.append(_("compute capability {number}").format(number=gpu.compute_capability))
    return phrases(parts)
