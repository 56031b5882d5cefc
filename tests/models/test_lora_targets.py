"""`lora_targets` takes groups and names, mixed, and equal selections compare equal."""

import pytest

from lorafit.config import TrainConfig
from lorafit.errors import ConfigError
from lorafit.models.lora_targets import select_targets

LLAMA = [
    *(f"model.layers.{i}.self_attn.{name}_proj" for i in range(2) for name in "qkvo"),
    *(f"model.layers.{i}.mlp.{name}_proj" for i in range(2) for name in ("gate", "up", "down")),
]
NEOX = [f"gpt_neox.layers.0.{name}" for name in ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h")]
NEMOTRON_H = [
    f"model.layers.{place}_proj" for place in ("0.mixer.in", "1.mixer.up", "1.mixer.down", "2.mixer.q", "2.mixer.o")
]
OPT = [f"model.decoder.layers.0.{name}" for name in ("self_attn.q_proj", "fc1", "fc2")]


@pytest.mark.parametrize(
    ("names", "targets", "ends"),
    [
        (LLAMA, "all", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        (LLAMA, "attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        (LLAMA, "mlp", {"gate_proj", "up_proj", "down_proj"}),
        (LLAMA, "attention, up_proj", {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj"}),
        (LLAMA, "q_proj,self_attn.v_proj", {"q_proj", "v_proj"}),
        (LLAMA, "q_proj,all-linear", {name.rpartition(".")[2] for name in LLAMA}),
        (NEOX, "attention", {"query_key_value", "dense"}),
        (NEOX, "mlp", {"dense_h_to_4h"}),
        (OPT, "mlp", {"fc1", "fc2"}),
        (NEMOTRON_H, "attention", {"q_proj", "o_proj"}),
        (NEMOTRON_H, "mlp", {"up_proj", "down_proj"}),
    ],
)
def test_a_list_of_groups_and_names_selects_layers(names: list[str], targets: str, ends: set[str]) -> None:
    chosen = select_targets(names, targets)
    assert {name.rpartition(".")[2] for name in chosen} == ends
    assert chosen == [name for name in names if name in chosen], "in the model's order, each once"


def test_unknown_words_are_named_with_the_layers_of_the_model() -> None:
    with pytest.raises(ConfigError) as error:
        select_targets(LLAMA, "all,wonder,q_proj,fc1")
    assert error.value.found == "wonder, fc1"
    assert all(word in str(error.value.fix) for word in ("down_proj", "q_proj", "all-linear", "attention", "mlp"))


def test_the_remedy_names_only_groups_that_the_model_has() -> None:
    with pytest.raises(ConfigError) as error:
        select_targets(LLAMA[:8], "mlp")
    assert str(error.value.fix).endswith("or use all-linear, attention.")


def test_a_full_name_selects_the_layer_in_files_and_in_memory_but_no_layer_of_another_tower() -> None:
    file = [f"language_model.model.layers.{i}.self_attn.q_proj" for i in (1, 11)]
    assert select_targets(file, "model.language_model.layers.1.self_attn.q_proj") == file[:1]
    with pytest.raises(ConfigError):
        select_targets(file, "model.vision_tower.layers.1.self_attn.q_proj")


@pytest.mark.parametrize(("one", "other"), [("all", "all-linear"), ("q_proj, v_proj", "q_proj,v_proj")])
def test_two_spellings_of_a_selection_are_equal_so_a_run_resumes_with_either(one: str, other: str) -> None:
    assert TrainConfig(lora_targets=one) == TrainConfig(lora_targets=other)
