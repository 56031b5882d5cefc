"""Checks of installed packages: present, recent enough, and built for this hardware. No package is imported."""

import re
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from lorafit.diagnostics.finding import Finding, Mark
from lorafit.diagnostics.machine import pip_install, pip_reinstall_torch
from lorafit.hardware.detect import Gpu, Machine
from lorafit.messages import _, aside, listed, phrases

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OWN_NAME = "lorafit"
DEVELOPERS = ("dev", "docs")  # extras that no user needs
SHOWN = ("torch", "transformers", "bitsandbytes")  # other packages are reported only if something is wrong
OPTIONAL_ENGINES = ("mlx", "mlx-metal", "mlx-lm")
TAGGED = ("torch", "bitsandbytes", "mlx", "mlx-metal", "numpy", "tokenizers", "safetensors")
ARCHS = {"arm64": ("arm64", "aarch64", "universal2"), "aarch64": ("aarch64",), "x86_64": ("x86_64", "universal2")}

# Requirements of PyTorch's CUDA builds: CUDA major version -> lowest driver, and the GPU's compute capability.
MIN_DRIVER = {11: 450, 12: 525, 13: 580}
TURING, BLACKWELL = 7.5, 10.0
BLACKWELL_CUDA = (12, 8)  # builds from this CUDA version on support Blackwell, but not Pascal and Volta
BEFORE_TURING = re.compile(r"\b(K80|M40|M60|P4|P40|P100|V100S?|GTX (9|10)\d\d|TITAN (X|V))\b", re.I)
OLD_GPU_TORCH = (
    "torch<2.15",
    "--index-url",
    "https://download.pytorch.org/whl/cu126",
)  # the last builds for older GPUs
NEURAL_MACOS = 26  # only MLX's macosx_26 wheel uses the M5's matrix units


class Packages:
    """The installed distributions on `path` (None: sys.path)."""

    def __init__(self, path: Sequence[str] | None = None) -> None:
        self._path = sys.path if path is None else list(path)

    def find(self, name: str) -> metadata.Distribution | None:
        """Return the distribution `name`, or None if it is not installed."""
        return next(iter(metadata.distributions(name=name, path=self._path)), None)

    def version(self, name: str) -> str | None:
        """Return the version of `name`, or None if it is not installed."""
        found = self.find(name)
        return found.version if found else None

    def tags(self, name: str) -> list[str]:
        """Return the platform tags of the installed wheel, e.g. "macosx_14_0_arm64"."""
        found = self.find(name)
        text = (found.read_text("WHEEL") or "") if found else ""
        return re.findall(r"^Tag: \S+?-\S+?-(\S+)$", text, re.M)

    def requirements(self, extra: str = "") -> "list[Requirement]":
        """Return lorafit's requirements on this system, or those that the extra `extra` adds."""
        from packaging.requirements import Requirement  # 0.04 s, which other commands do not need

        us = self.find(OWN_NAME)
        lines = [Requirement(line) for line in (us.requires or [])] if us else []
        plain = [r for r in lines if r.marker is None or r.marker.evaluate({"extra": ""})]
        if not extra:
            return plain
        return [r for r in lines if r not in plain and r.marker and r.marker.evaluate({"extra": extra})]

    def extras(self) -> list[str]:
        """Return the names of lorafit's extras, without those for its developers."""
        us = self.find(OWN_NAME)
        return [name for name in (us.metadata.get_all("Provides-Extra") or []) if name not in DEVELOPERS] if us else []

    def versions(self) -> dict[str, str]:
        """Return the versions of the installed packages among the requirements, the extras, MLX and peft."""
        names = [*(r.name for r in self.requirements()), *(r.name for e in self.extras() for r in self.requirements(e))]
        pairs = [(name, self.version(name)) for name in dict.fromkeys([*names, *OPTIONAL_ENGINES, "peft"])]
        return {name: version for name, version in pairs if version is not None}


def package_findings(machine: Machine, driver: str | None, packages: Packages) -> Iterator[Finding]:
    """Yield the versions of the main packages, then each package that is missing, too old, or for other hardware."""
    for name in (*SHOWN, *OPTIONAL_ENGINES):
        if version := packages.version(name):
            yield Finding("packages", name, _build_text(name, version, machine, packages))
    yield from _requirements(machine, packages)
    yield from _architectures(machine, packages)
    yield from _cuda_builds(machine, driver)
    yield from _mlx_build(machine, packages)
    yield from _extras(packages)


def _build_text(name: str, version: str, machine: Machine, packages: Packages) -> str:
    if name == "torch":
        cuda = _("for CUDA {version}").format(version=machine.torch_cuda) if machine.torch_cuda else _("without CUDA")
        return phrases([version, cuda]) if machine.system != "Darwin" else version
    if name == "mlx-metal":
        return aside(version, listed(packages.tags(name)) or "?")
    return version


def _requirements(machine: Machine, packages: Packages) -> Iterator[Finding]:
    """Yield each requirement that is not met, then the number of requirements that are met."""
    met = 0
    for wanted in packages.requirements():
        version = packages.version(wanted.name)
        if version is not None and wanted.specifier.contains(version, prereleases=True):
            met += 1
            continue
        found = _("not installed") if version is None else _("{version} is too old").format(version=version)
        words = f"{wanted.name}{wanted.specifier}"
        yield Finding("packages", wanted.name, found, _severity(wanted.name, machine), command=pip_install(words))
    if met:
        yield Finding("packages", _("total"), _("packages that meet the requirements: {count}").format(count=met))


def _severity(name: str, machine: Machine) -> Mark:
    """Return the mark of an unmet requirement. bitsandbytes is essential only on CUDA, where 4-bit is the default."""
    return "poor" if name == "bitsandbytes" and machine.gpu("cuda") is None else "bad"


def _architectures(machine: Machine, packages: Packages) -> Iterator[Finding]:
    """Yield the wheels for another processor, as in an environment that was copied from an Intel Mac."""
    ours = ARCHS.get(machine.arch, (machine.arch,))
    for name in TAGGED:
        tags = [tag for tag in packages.tags(name) if tag != "any"]
        if tags and not any(tag.endswith(ours) for tag in tags):
            found = _("built for {tags}, not for {arch}").format(tags=listed(tags), arch=machine.arch)
            command = pip_install("--force-reinstall", "--no-deps", name)
            yield Finding("packages", name, found, "bad", command=command)


def _cuda_builds(machine: Machine, driver: str | None) -> Iterator[Finding]:
    """Yield why the installed PyTorch cannot use the NVIDIA GPU of this machine."""
    gpu = machine.gpu("cuda")
    if gpu is None or machine.torch_version is None:
        return
    major = int(driver.split(".")[0]) if driver and driver.split(".")[0].isdigit() else None
    if machine.torch_cuda is None:
        found = _("built without CUDA, although this machine has an NVIDIA GPU: training would run on the CPU")
        yield Finding("packages", "torch", found, "poor", command=_cuda_torch(gpu, major))
        return
    cuda = tuple(int(number) for number in re.findall(r"\d+", machine.torch_cuda)[:2])
    least = MIN_DRIVER.get(cuda[0])
    if least is not None and major is not None and major < least:
        found = _("built for CUDA {cuda}, which needs NVIDIA driver {least} or newer; installed: {driver}")
        yield Finding(
            "packages", "torch", found.format(cuda=machine.torch_cuda, least=least, driver=driver), "bad",
            fix=_("Update the driver (https://www.nvidia.com/drivers), or install an older build:"),
            command=pip_reinstall_torch(*OLD_GPU_TORCH),
        )  # fmt: skip
    if _before_turing(gpu) and cuda >= BLACKWELL_CUDA:
        found = _(
            "built for CUDA {cuda}: such builds support only Turing and newer (compute capability 7.5), not {gpu}"
        )
        text = found.format(cuda=machine.torch_cuda, gpu=gpu.name)
        yield Finding("packages", "torch", text, "bad", command=pip_reinstall_torch(*OLD_GPU_TORCH))
    if (gpu.compute_capability or 0) >= BLACKWELL and cuda < BLACKWELL_CUDA:
        found = _("built for CUDA {cuda}, which is too old to support {gpu}")
        text = found.format(cuda=machine.torch_cuda, gpu=gpu.name)
        yield Finding("packages", "torch", text, "bad", command=pip_reinstall_torch("torch"))


def _cuda_torch(gpu: Gpu, driver: int | None) -> str:
    """Return the command that installs a PyTorch for this GPU and driver major version.

    PyPI has the build for the newest CUDA version.
    """
    old_driver = driver is not None and driver < MIN_DRIVER[13]
    return pip_reinstall_torch(*(OLD_GPU_TORCH if _before_turing(gpu) or old_driver else ("torch",)))


def _before_turing(gpu: Gpu) -> bool:
    """Return whether `gpu` is older than Turing, by compute capability or, with an old driver, by name."""
    if gpu.compute_capability is not None:
        return gpu.compute_capability < TURING
    return BEFORE_TURING.search(gpu.name) is not None


def _mlx_build(machine: Machine, packages: Packages) -> Iterator[Finding]:
    tags = packages.tags("mlx-metal")
    built = [int(made[1]) for tag in tags if (made := re.match(r"macosx_(\d+)", tag))]
    macos = re.match(r"\d+", machine.macos or "")
    if built and macos and "M5" in machine.chip and int(macos[0]) >= NEURAL_MACOS > max(built):
        found = _("{tags}: does not use the M5's matrix units; the wheel for macOS {version} does")
        command = pip_install("--force-reinstall", "--no-deps", "mlx", "mlx-metal")
        text = found.format(tags=listed(tags), version=NEURAL_MACOS)
        yield Finding("packages", "mlx-metal", text, "poor", command=command)


def _extras(packages: Packages) -> Iterator[Finding]:
    """Yield the optional packages that are not installed."""
    missing = [
        r for extra in packages.extras() for r in packages.requirements(extra) if packages.version(r.name) is None
    ]
    if missing:
        text = _("not installed: {names}").format(names=listed(r.name for r in missing))
        yield Finding("packages", _("optional"), text)
