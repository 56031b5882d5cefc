"""The environment variables of allocators and threads are set before a device or a library reads them."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from lorafit.engines.torch import device
from lorafit.engines.torch.device import DEVICES, measured_bytes

RATIO, LOW_RATIO = "PYTORCH_MPS_HIGH_WATERMARK_RATIO", "PYTORCH_MPS_LOW_WATERMARK_RATIO"


def limits_at_each_query(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Return the value of RATIO at each query for the memory of a simulated MPS.

    On a Mac the first query creates MPS's allocator, which reads the variable.
    """
    limits: list[str | None] = []

    def recommended() -> int:
        limits.append(os.environ.get(RATIO))
        return 1

    simulated = replace(DEVICES["mps"], available=lambda: True, recommended_bytes=recommended)
    monkeypatch.setattr(device, "DEVICES", {"mps": simulated})
    measured_bytes("mps")
    return limits


@pytest.mark.parametrize(("set_by_user", "wanted"), [(None, "1.0"), ("0.8", "0.8")])
def test_the_limit_of_mps_is_set_before_metal_is_asked_and_the_users_own_stays(
    monkeypatch: pytest.MonkeyPatch, set_by_user: str | None, wanted: str
) -> None:
    for name in (RATIO, LOW_RATIO):
        monkeypatch.setenv(name, "")  # so that pytest removes the value that lorafit sets
        monkeypatch.delenv(name)
    if set_by_user is not None:
        monkeypatch.setenv(RATIO, set_by_user)
    assert limits_at_each_query(monkeypatch) == [wanted]
    assert float(os.environ[LOW_RATIO]) < float(wanted)  # torch refuses a low ratio above the high ratio


def test_a_limit_that_the_user_set_is_not_contradicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOW_RATIO, "1.4")
    monkeypatch.delenv(RATIO, raising=False)
    assert limits_at_each_query(monkeypatch) == [None]


def test_an_unknown_peak_of_mps_is_none_and_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 0)
    assert DEVICES["mps"].peak_bytes() is None
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 5)
    assert DEVICES["mps"].peak_bytes() == 5


@pytest.mark.parametrize(("set_by_user", "wanted"), [({}, "1000"), ({"OMP_WAIT_POLICY": "active"}, "None")])
def test_threads_that_wait_sleep_soon_unless_the_user_says_how_they_wait(
    set_by_user: dict[str, str], wanted: str
) -> None:
    script = "import lorafit.engines, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    environ = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | set_by_user
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    # OpenMP reads the variable when torch is loaded, so lorafit must set the variable before it imports torch.
    assert done.stdout.split() == [wanted, "False"]
