"""Every engine on every available device, and operations for tests that use only the Engine protocol.

Gradients are read from the optimizer's file: after the first step without clipping, `exp_avg` is (1 - beta1) * gradient.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafit import registry
from lorafit.engines.base import Engine, OutOfMemory, Setup
from lorafit.planner.plan import Plan
from support.engine_runs import CASES as CASES
from support.engine_runs import NOT_IN_MLX as NOT_IN_MLX
from support.engine_runs import SAMPLES as SAMPLES
from support.engine_runs import Arrays as Arrays
from support.engine_runs import adapter_of as adapter_of
from support.engine_runs import b_norm as b_norm
from support.engine_runs import loss_and_gradients as loss_and_gradients
from support.engine_runs import run as run
from support.engine_runs import start_with_b as start_with_b
from support.engine_runs import step_batch as step_batch
from support.engine_runs import worst as worst

ENGINES = {**registry.ENGINES, "fake": registry.Entry("lorafit.engines.fake:FakeEngine", "")}


@dataclass(frozen=True)
class Way:
    """An engine on a device.

    `prepare` changes an engine after it is opened.
    """

    name: str
    engine: str
    device: str
    says: str  # error text when memory runs out
    prepare: Callable[[Any], None] = lambda engine: None
    raises: Callable[[str], Exception] = RuntimeError  # exception when memory runs out

    def has(self, case: str) -> bool:
        """Return whether the engine can open the model of `case`."""
        return self.engine != "mlx" or case not in NOT_IN_MLX

    def open(self, folder: Path, plan: Plan | None) -> Engine:
        """Open the model in `folder`, for training with `plan` or, without a plan, for answers only."""
        if plan is not None:
            plan = replace(plan, engine=self.engine, device=self.device)
        quantization = "none" if plan is None else plan.quantization
        setup = Setup(folder, str(folder), self.device, "fp32", quantization, plan=plan)
        engine: Engine = registry.load(ENGINES[self.engine]).open(setup)
        self.prepare(engine)
        return engine


def _without_fast_path(engine: Any) -> None:
    engine.packed = None


def _present() -> list[Way]:
    no_memory = "MPS backend out of memory (MPS allocated: 1 GB)"
    ways = [
        Way("torch, CPU, fast path", "torch", "cpu", no_memory),
        Way("torch, CPU, generic path", "torch", "cpu", no_memory, _without_fast_path),
    ]
    if torch.cuda.is_available():
        ways.append(Way("torch, CUDA", "torch", "cuda", "CUDA out of memory."))
    if torch.backends.mps.is_available():
        ways.append(Way("torch, MPS", "torch", "mps", no_memory))
    if HAS_MLX:
        ways.append(Way("MLX, CPU", "mlx", "cpu", "[malloc] Unable to allocate 9000000000 bytes."))
    if HAS_MLX and importlib.import_module("mlx.core").metal.is_available():
        ways.append(Way("MLX, GPU", "mlx", "mps", "[malloc] Unable to allocate 9000000000 bytes."))
    return ways


HAS_MLX = all(importlib.util.find_spec(name) is not None for name in ("mlx", "mlx_lm"))
if HAS_MLX:
    importlib.import_module("lorafit.engines.mlx")  # first import of MLX in the process: it loads OpenBLAS
WAYS = _present()
NO_MLX = pytest.mark.skipif(
    not HAS_MLX, reason="MLX has no wheel here, or is not installed: pip install 'lorafit[mlx]'"
)
# The tests of the loop and of the disk rely on the fake engine following the protocol. It has no model to compare.
FAKE = Way("fake", "fake", "cpu", "Out of memory.", raises=OutOfMemory)
every_way = pytest.mark.parametrize("way", WAYS, ids=[way.name for way in WAYS])


every_way_and_the_fake = pytest.mark.parametrize("way", [*WAYS, FAKE], ids=[way.name for way in [*WAYS, FAKE]])
