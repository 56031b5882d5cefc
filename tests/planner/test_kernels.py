"""A plan on a CUDA device names the optional packages with kernels for layers without attention."""

from dataclasses import replace

import pytest
from support.shapes import llama_1b

from lorafit.hardware.catalogue.find import machine_named
from lorafit.planner import kernels
from lorafit.planner.kernels import kernel_choices

DELTA = replace(llama_1b(), kernels=("flash-linear-attention", "causal-conv1d"))


def test_missing_packages_are_named_with_the_line_to_paste() -> None:
    (choice,) = kernel_choices(DELTA, machine_named("RTX 3090"), "cuda")
    assert (choice.setting, choice.value) == ("kernels", "optional")
    assert "`pip install flash-linear-attention causal-conv1d`" in choice.reason


def test_installed_packages_are_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    here = replace(machine_named("RTX 3090"), described=False)
    monkeypatch.setattr(kernels, "find_spec", lambda name: name == "fla" or None)
    (choice,) = kernel_choices(DELTA, here, "cuda")
    assert "`pip install causal-conv1d`" in choice.reason


@pytest.mark.parametrize(("spec", "device"), [(DELTA, "mps"), (DELTA, "cpu"), (llama_1b(), "cuda")])
def test_other_devices_and_models_need_none(spec: object, device: str) -> None:
    assert kernel_choices(spec, machine_named("RTX 3090"), device) == []  # type: ignore[arg-type]
