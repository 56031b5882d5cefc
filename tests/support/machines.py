"""Machines, GPUs and data statistics that tests describe instead of detecting."""

from dataclasses import replace

import numpy as np

from lorafit.config import TrainConfig
from lorafit.hardware.detect import Gpu, Machine
from lorafit.models.spec import ModelSpec
from lorafit.planner.plan import Plan
from lorafit.planner.planner import DataStats, make_plan
from lorafit.units import GIB
from support.shapes import llama_1b

CPU = Machine(
    system="Linux",
    arch="x86_64",
    chip="AMD Ryzen 9",
    cores=8,
    memory_bytes=32 * GIB,
    available_bytes=24 * GIB,
    cpu_bf16=False,
    gpus=(),
    rosetta=False,
    macos=None,
    python="3.13.1",
    torch_version="2.13.0",
    torch_cuda=None,
)


RTX_3090 = Gpu("NVIDIA GeForce RTX 3090", "cuda", 24 * GIB, 23 * GIB, 8.6)


T4 = Gpu("Tesla T4", "cuda", 15 * GIB, 14 * GIB, 7.5)


P100 = Gpu("Tesla P100-PCIE-16GB", "cuda", 16 * GIB, 15 * GIB, 6.0)


def cuda(gpu: Gpu, torch_cuda: str | None = "12.8") -> Machine:
    """Return the machine CPU with `gpu`. `torch_cuda`: CUDA version of the installed PyTorch, None for a CPU build."""
    return replace(CPU, gpus=(gpu,), torch_cuda=torch_cuda)


def mac(chip: str, gib: int, measured_gib: float | None = None, torch_version: str = "2.14.1") -> Machine:
    """Return a Mac with `gib` GiB of memory, half of it free. `measured_gib`: the GPU's limit, None if not measured."""
    gpu = Gpu(chip, "mps", gib * GIB, None if measured_gib is None else int(measured_gib * GIB))
    facts = {"system": "Darwin", "arch": "arm64", "macos": "15.6.1", "chip": chip, "gpus": (gpu,)}
    return replace(CPU, memory_bytes=gib * GIB, available_bytes=gib * GIB // 2, torch_version=torch_version, **facts)  # type: ignore[arg-type]


M1 = mac("Apple M1", 8, 5.3)


M2_MAX = mac("Apple M2 Max", 32, 21.3)


def facts(rows: int = 1000, valid: int = 50, length: int = 300, longest: int = 512) -> DataStats:
    """Return data of `rows` training and `valid` validation rows of `length` tokens; one training row has `longest`."""
    lengths = np.full(rows, length)
    lengths[-1] = longest
    return DataStats(lengths, np.full(valid, length), "digest")


def plan_for(
    machine: Machine, spec: ModelSpec | None = None, data: DataStats | None = None, **settings: object
) -> Plan:
    """Return the plan for `machine`; by default of Llama-3.2-1B and `facts()`."""
    return make_plan(TrainConfig(**settings), machine, spec or llama_1b(), data or facts())  # type: ignore[arg-type]


def reason(plan: Plan, setting: str) -> str:
    """Return the plan's reason for its choice of `setting`."""
    return next(choice.reason for choice in plan.choices if choice.setting == setting)
