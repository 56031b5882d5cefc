"""A model folder that cannot be used is refused: the error names the folder and what is wrong with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file
from support.refusals import Refused, Words, change_config, the_run, without

from lorafit.cli.app import main
from lorafit.events import Warned, read_events


def test_a_missing_model_folder_is_named(flags: Callable[..., Words], refused: Refused, tmp_path: Path) -> None:
    refused(flags(model_name=tmp_path / "nomodel"), tmp_path / "nomodel", "--model_name", "demo")


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["model.safetensors"], ["*.safetensors"]),
        (["tokenizer.json", "tokenizer_config.json"], ["tokenizer.json"]),
        (["config.json"], ["config.json"]),
    ],
)
def test_a_model_folder_that_lacks_something_is_named_with_it(
    flags: Callable[..., Words], refused: Refused, model: Path, tmp_path: Path, names: list[str], named: list[str]
) -> None:
    refused(flags(model_name=without(model, tmp_path / "bare", *names)), tmp_path / "bare", *named)


def test_truncated_weights_are_named(
    flags: Callable[..., Words], refused: Refused, model: Path, tmp_path: Path
) -> None:
    file = without(model, tmp_path / "cut") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    refused(flags(model_name=tmp_path / "cut"), file, file.stat().st_size, "git lfs pull")


def test_pickled_weights_are_not_loaded_and_a_conversion_is_offered(
    flags: Callable[..., Words], refused: Refused, model: Path, tmp_path: Path
) -> None:
    folder = without(model, tmp_path / "old", "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    refused(flags(model_name=folder), folder, "pytorch_model.bin", "save_pretrained")


def test_a_tokenizer_that_cannot_be_read_is_named(
    flags: Callable[..., Words], refused: Refused, model: Path, tmp_path: Path
) -> None:
    folder = without(model, tmp_path / "odd")
    (folder / "tokenizer.json").write_text("{")
    refused(flags(model_name=folder), folder, "tokenizer.json")


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 5}, {"hidden_size": 64}, {"model_type": "wonder"}])
def test_weights_that_do_not_fit_their_config_are_never_filled_with_random_numbers(
    flags: Callable[..., Words], refused: Refused, model: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    change_config(without(model, tmp_path / "other"), **changes)
    refused(flags(model_name=tmp_path / "other"), tmp_path / "other")


def test_a_model_without_a_chat_template_trains_and_the_default_template_is_reported(
    flags: Callable[..., Words], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = without(model, tmp_path / "base", *(path.name for path in model.glob("*.jinja")))
    assert main(flags(model_name=folder, lang="en")) == 0
    assert "no chat template" in capsys.readouterr().out
    run = the_run(tmp_path / "output")
    assert any("ChatML" in event.text for event in read_events(run.events) if isinstance(event, Warned))
    assert (run.final_model / "chat_template.jinja").is_file()


def test_targets_that_match_no_layer_are_named_with_those_there_are(
    flags: Callable[..., Words], refused: Refused
) -> None:
    text = refused(flags(lora_targets="q_proj,wonder"), "q_proj,wonder", "k_proj", "all-linear")
    assert "Reading" not in text


def with_nan(model: Path, folder: Path, name: str) -> Path:
    """Copy `model` to `folder` with a NaN in the weight `name`."""
    file = without(model, folder) / "model.safetensors"
    weights = load_file(file)
    weights[name].flat[3] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("engine", ["torch", "mlx"])
def test_weights_that_are_not_numbers_are_named(
    flags: Callable[..., Words], refused: Refused, model: Path, tmp_path: Path, engine: str
) -> None:
    if engine == "mlx":
        pytest.importorskip("mlx_lm")
    name = "model.layers.1.input_layernorm.weight"
    folder = with_nan(model, tmp_path / "nan", name)
    text = refused(flags(model_name=folder, engine=engine, device="cpu"), folder, "NaN", name)
    assert "model type" not in text
    chat = ["chat", "--base_model", str(folder), "--engine", engine, "--device", "cpu", "--prompt", "hi"]
    for temperature in ("0", "1"):
        refused([*chat, "--temperature", temperature], name if engine == "mlx" else "--precision fp32")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_rank_above_the_width_of_a_layer_gets_a_word(
    flags: Callable[..., Words], language: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, wide in ((16, False), (17, True)):  # the narrowest layers are k_proj and v_proj, 32 x 16
        for argv in (flags("--dry_run", lora_r=rank, lang=language), ["plan", *flags(lora_r=rank, lang=language)[2:]]):
            assert main(argv) == 0
            assert ("`--lora_r 16`" in capsys.readouterr().out) == wide
