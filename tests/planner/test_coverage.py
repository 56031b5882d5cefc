"""The plan says what an adapter covers: linear layers, their share of the weights, and experts without an adapter."""

from dataclasses import replace

import pytest
from support.shapes import llama_1b

from lorafit.planner.coverage import adapter_choices


def test_the_line_names_parameters_layers_and_their_share() -> None:
    (choice,) = adapter_choices(llama_1b(), 16, "all-linear")
    assert (choice.setting, choice.value) == ("adapter", "11,272,192 parameters")
    assert choice.reason == "on 112 of 112 linear layers, which hold 78.7% of the weights"


def test_chosen_layers_are_counted_among_all() -> None:
    (choice,) = adapter_choices(llama_1b(), 8, "attention")
    assert "on 64 of 112 linear layers" in choice.reason


def test_experts_without_an_adapter_are_named_with_their_share() -> None:
    spec = llama_1b()
    (choice,) = adapter_choices(replace(spec, expert_weights=spec.parameters // 2), 16, "all-linear")
    assert choice.reason.endswith("the experts (50.0% of the weights) get no adapter")


@pytest.mark.parametrize("change", [{"linears": []}, {"parameters": 0}])
def test_files_without_known_layers_give_no_line(change: dict[str, object]) -> None:
    assert adapter_choices(replace(llama_1b(), **change), 16, "all-linear") == []  # type: ignore[arg-type]
