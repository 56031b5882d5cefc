"""Every operator that the engine calls has an MPS kernel in torch's own table, and no tensor is float64.

These tests do not run on a Mac: the table shows that a kernel exists, not that its results are right.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchgen
import yaml
from support import tiny
from torch.utils._python_dispatch import TorchDispatchMode

from lorafit.data.micro_batch import pack
from lorafit.engines.torch import self_check
from lorafit.sampling import Sampling

TABLE = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
# SDPA's operators on the CPU. On MPS it calls its own operator (PyTorch, sdp_utils and Attention.mm).
CPU_ATTENTION = {"_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward"}
MPS_ATTENTION = "_scaled_dot_product_attention_math_for_mps"


class Recorder(TorchDispatchMode):
    """Records the names of all called operators, and the dtypes of their inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "aten":  # other namespaces belong to the profiler
            self.names.add(func.__name__ if func._overloadname != "default" else func._opname)
        out = func(*args, **(kwargs or {}))
        flat, _spec = torch.utils._pytree.tree_flatten((args, kwargs, out))
        self.dtypes |= {value.dtype for value in flat if isinstance(value, torch.Tensor)}
        return out


def has_mps_kernel(table: dict[str, dict[str, Any]], name: str) -> bool:
    """Return whether operator `name` runs on MPS.

    It has a kernel of its own, delegates to a structured operator that has one, or is composed of other operators.
    """
    entry = table[name]
    if delegate := entry.get("structured_delegate"):
        return has_mps_kernel(table, delegate)
    dispatch = entry.get("dispatch")
    if dispatch is None:
        return True
    keys = {key.strip() for keys in dispatch for key in keys.split(",")}
    return bool(
        keys
        & {"MPS", "CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional"}
    )


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, Any]]:
    """torch's table of operators, by name."""
    entries = yaml.load(TABLE.read_text(), yaml.CSafeLoader)
    return {entry["func"].partition("(")[0]: entry for entry in entries}


def train(folder: Path) -> None:
    engine = tiny.open_engine(folder, tiny.make_plan(lora_dropout=0.1, recompute=2))
    samples = tiny.make_samples(4)
    micro = pack(samples, range(4), range(4))
    for step in (1, 2):
        engine.step(step, [micro], micro.num_targets, 1e-3)
    engine.evaluate([micro])


def answer(folder: Path) -> None:
    engine = tiny.open_engine(folder, None)
    list(engine.generate(range(5, 15), Sampling(max_new_tokens=4)))


@pytest.mark.parametrize("action", [train, answer, lambda _folder: self_check.self_test("cpu")])
def test_every_operator_has_an_mps_kernel_and_none_is_float64(
    table: dict[str, dict[str, Any]], models: Path, action: Callable[[Path], None]
) -> None:
    with Recorder() as recorder:
        action(models / "llama")
    assert len(recorder.names) > 5
    assert torch.float64 not in recorder.dtypes
    missing = {name for name in recorder.names - CPU_ATTENTION if not has_mps_kernel(table, name)}
    assert missing == set()


def test_the_table_knows_mps_and_says_no_where_there_is_none(table: dict[str, dict[str, Any]]) -> None:
    assert has_mps_kernel(table, "mm")
    assert has_mps_kernel(table, MPS_ATTENTION)
    assert not has_mps_kernel(table, "linalg_eigh") or not has_mps_kernel(table, "geqrf")


def test_float64_would_be_seen() -> None:
    with Recorder() as recorder:
        torch.from_numpy(np.zeros(2)) + 1
    assert torch.float64 in recorder.dtypes
