"""Is an adapter that does not fit, or a run that is none, named before anything is loaded?"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.refusals import Refused, Words, without

from lorafit.engines.torch.engine import TorchEngine

# adapters


@pytest.fixture(scope="module", params=[{"hidden_size": 64}, {"num_hidden_layers": 2}], ids=["wider", "shallower"])
def other(request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another base than the adapter's."""
    folder = without(model, tmp_path_factory.mktemp("other") / "base")
    return tiny.save_model("llama", folder, vocab_size=49_152, **request.param)


def test_an_adapter_of_another_base_is_refused_before_the_base_is_loaded(
    refused: Refused, adapter: Path, other: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchEngine, "open", lambda _setup: pytest.fail("loaded"))
    argv = ["chat", "--lora_weights", str(adapter), "--base_model", str(other), "--prompt", "hi"]
    refused(argv, adapter, model, "--base_model")


def test_an_adapter_of_another_base_is_no_start(
    flags: Callable[..., Words], refused: Refused, adapter: Path, other: Path, model: Path
) -> None:
    argv = flags(init_adapter=adapter, model_name=other, lora_targets="q_proj,v_proj")
    text = refused(argv, adapter, model, "--model_name")
    assert "Reading" not in text


@pytest.mark.parametrize("changes", [{"lora_r": 8}, {"lora_alpha": 64}])
def test_a_start_of_another_rank_or_scale_gives_the_flags_to_paste(
    flags: Callable[..., Words], refused: Refused, adapter: Path, changes: dict[str, Any]
) -> None:
    refused(flags(init_adapter=adapter, **changes), adapter, "--lora_r 4 --lora_alpha 8")


def test_a_start_on_other_layers_gives_the_flag_to_paste(
    flags: Callable[..., Words], refused: Refused, adapter: Path
) -> None:
    refused(flags(init_adapter=adapter), adapter, "--lora_targets q_proj,v_proj")


def test_a_start_that_does_not_exist_is_told_before_the_model_is_looked_for(
    flags: Callable[..., Words], refused: Refused, tmp_path: Path
) -> None:
    text = refused(flags(init_adapter=tmp_path / "nothing"), tmp_path / "nothing", "adapter_config.json")
    assert "Looking for the model" not in text


def test_a_run_to_talk_to_that_does_not_exist_is_named(refused: Refused, tmp_path: Path) -> None:
    refused(["chat", "--lora_weights", str(tmp_path / "nothing")], tmp_path / "nothing", "final_model")


# runs


def test_nothing_to_resume_says_how_to_start(refused: Refused, tmp_path: Path) -> None:
    refused(["resume", "--output_dir", str(tmp_path / "output")], tmp_path / "output", "lorafit train")
    refused(["train", "--resume", "--output_dir", str(tmp_path / "output")], tmp_path / "output", "lorafit train")


def test_a_folder_that_is_no_run_is_not_resumed(refused: Refused, model: Path, tmp_path: Path) -> None:
    refused(["resume", str(model), "--output_dir", str(tmp_path / "output")], model, "config.yaml", "lorafit runs")
