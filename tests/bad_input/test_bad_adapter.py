"""An adapter of another base model, and a folder that is not a run, are refused before anything is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.refusals import Refused, Words, without

from lorafit import api
from lorafit.errors import LorafitError
from lorafit.evaluation.chat_request import ChatRequest

# adapters


@pytest.fixture(scope="module", params=[{"hidden_size": 64}, {"num_hidden_layers": 2}], ids=["wider", "shallower"])
def other(request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model of another shape than that of the adapter."""
    folder = without(model, tmp_path_factory.mktemp("other") / "base")
    return tiny.save_model("llama", folder, vocab_size=49_152, **request.param)


def test_an_adapter_of_another_base_is_refused_before_the_base_is_loaded(
    refused: Refused, adapter: Path, other: Path, model: Path
) -> None:
    argv = ["chat", "--lora_weights", str(adapter), "--base_model", str(other), "--prompt", "hi"]
    refused(argv, adapter, model, "--base_model")
    progress: list[str] = []
    with pytest.raises(LorafitError):
        api.open_chat(ChatRequest(lora_weights=str(adapter), base_model=str(other)), progress.append)
    assert not [text for text in progress if text.startswith("Loading")]


def test_an_adapter_of_another_base_is_refused_as_init_adapter(
    flags: Callable[..., Words], refused: Refused, adapter: Path, other: Path, model: Path
) -> None:
    argv = flags(init_adapter=adapter, model_name=other, lora_targets="q_proj,v_proj")
    text = refused(argv, adapter, model, "--model_name")
    assert "Reading" not in text


@pytest.mark.parametrize("changes", [{"lora_r": 8}, {"lora_alpha": 64}])
def test_an_init_adapter_of_another_rank_or_scale_gives_the_flags_to_paste(
    flags: Callable[..., Words], refused: Refused, adapter: Path, changes: dict[str, Any]
) -> None:
    refused(flags(init_adapter=adapter, **changes), adapter, "--lora_r 4 --lora_alpha 8")


def test_an_init_adapter_on_other_layers_gives_the_flag_to_paste(
    flags: Callable[..., Words], refused: Refused, adapter: Path
) -> None:
    refused(flags(init_adapter=adapter, lora_targets="q_proj,o_proj"), adapter, "--lora_targets q_proj,v_proj")


def test_an_init_adapter_that_does_not_exist_is_reported_before_the_model_is_looked_for(
    flags: Callable[..., Words], refused: Refused, tmp_path: Path
) -> None:
    text = refused(flags(init_adapter=tmp_path / "nothing"), tmp_path / "nothing", "adapter_config.json")
    assert "Looking for the model" not in text


def test_a_run_to_chat_with_that_does_not_exist_is_named(refused: Refused, tmp_path: Path) -> None:
    refused(["chat", "--lora_weights", str(tmp_path / "nothing")], tmp_path / "nothing", "lorafit runs")


# runs


def test_nothing_to_resume_says_how_to_start(refused: Refused, tmp_path: Path) -> None:
    refused(["resume", "--output_dir", str(tmp_path / "output")], tmp_path / "output", "lorafit train")
    refused(["train", "--resume", "--output_dir", str(tmp_path / "output")], tmp_path / "output", "lorafit train")


def test_a_folder_that_is_no_run_is_not_resumed(refused: Refused, model: Path, tmp_path: Path) -> None:
    refused(["resume", str(model), "--output_dir", str(tmp_path / "output")], model, "config.yaml", "lorafit runs")
