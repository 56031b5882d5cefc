"""An adapter to start from fits its base model under the names of either, or is refused in words."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.shapes import llama_1b

from lorafit.config import TrainConfig
from lorafit.errors import AdapterError
from lorafit.models.lora_targets import matching_names
from lorafit.models.text_tensors import Linear
from lorafit.run_folders.adapter import AdapterConfig, lora_names, write_adapter
from lorafit.run_folders.adapter_fit import read_matching_adapter
from lorafit.training.initial_adapter import with_targets

LAYERS = ("0.self_attn.q_proj", "2.self_attn.q_proj")
IN_FILES = [f"language_model.model.layers.{place}" for place in LAYERS]
SPEC = replace(llama_1b(), linears=[Linear(name, 8, 8) for name in IN_FILES])


def adapter_on(folder: Path, *modules: str) -> Path:
    tensors = {}
    for module in modules:
        tensors |= dict(zip(lora_names(module), (np.ones((2, 8), "f4"), np.ones((8, 2), "f4")), strict=True))
    write_adapter(folder, AdapterConfig("base", 2, 4.0, 0.0, list(modules)), tensors)
    return folder


def test_an_adapter_with_the_names_of_modules_fits_files_with_other_names(tmp_path: Path) -> None:
    folder = adapter_on(tmp_path, *(f"model.language_model.layers.{place}" for place in LAYERS))
    assert matching_names(IN_FILES, with_targets(TrainConfig(), folder, SPEC).lora_targets) == IN_FILES
    one = adapter_on(tmp_path, f"model.language_model.layers.{LAYERS[1]}")
    assert matching_names(IN_FILES, with_targets(TrainConfig(), one, SPEC).lora_targets) == IN_FILES[1:]


def test_an_adapter_of_another_base_is_refused_as_such(tmp_path: Path) -> None:
    folder = adapter_on(tmp_path, "model.language_model.layers.0.self_attn.q_proj")
    with pytest.raises(AdapterError, match="different base model"):
        with_targets(TrainConfig(), folder, replace(SPEC, linears=[Linear(IN_FILES[0], 8, 16)]))


@pytest.mark.parametrize("other", ["model.layers.0.mlp.router.gate", "model.vision_tower.layers.0.self_attn.q_proj"])
def test_layers_that_training_leaves_out_are_named(tmp_path: Path, other: str) -> None:
    folder = adapter_on(tmp_path, f"model.layers.{LAYERS[0]}", other)
    with pytest.raises(AdapterError, match="training leaves out") as refusal:
        with_targets(TrainConfig(), folder, SPEC)
    assert refusal.value.found == other.removeprefix("model.layers.0.")
    with pytest.raises(AdapterError, match="training leaves out"):  # a run of an older version that is resumed
        read_matching_adapter(folder, {name: (1,) for name in lora_names(f"model.layers.{LAYERS[0]}")})
