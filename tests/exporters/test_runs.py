"""Exports of runs: validation rows, 4-bit bases, and a base whose files changed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import tiny

from lorafit.cli.app import main
from lorafit.errors import LorafitError
from lorafit.exporters.export import Exported

Export = Callable[..., Exported]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Callable[..., Path]:
    """A function that trains a tiny model with flags and returns the run's folder, whose base is `base` beside it."""

    def run(*flags: str) -> Path:
        folder = tmp_path_factory.mktemp("run")
        base = tiny.save_chat_model(folder / "base", demo_folder)
        rows = [{"instruction": f"第{i}题，{i}加一是多少？", "output": f"答案是{i + 1}。"} for i in range(40)]
        (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
        words = f"--model_name {base} --dataset_name {folder / 'rows.json'} --output_dir {folder / 'output'}"
        settings = "--max_steps 12 --effective_batch 8 --max_length 64 --learning_rate 0.01 --lora_r 4 --val_size 8"
        assert main(["train", "--no_supervisor", *words.split(), *settings.split(), *flags]) == 0
        (output,) = (folder / "output").iterdir()
        return output

    return run


def test_a_run_is_measured_on_its_validation_rows_and_refused_after_a_change_of_its_base(
    train: Callable[..., Path], run_export: Export, tmp_path: Path
) -> None:
    run = train()
    exported = run_export(run)
    found = exported.certificate.forms[0].behaviour[0]
    assert found.rows == "validation"
    assert found.kl_base > 0.001
    assert found.kl_export < 1e-4 * found.kl_base
    text = (exported.folder / "export.json").read_text("utf-8")
    assert "答案" not in text
    assert str(run.parent) not in text

    weights = run.parent.parent / "base/model.safetensors"
    tensors = load_file(weights)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**tensors, name: (tensors[name] * 1.5).astype(np.float32)}, weights, {"format": "pt"})
    with pytest.raises(LorafitError, match="not the one") as refused:
        run_export(run, output=str(tmp_path / "second"))
    assert "model.safetensors" in str(refused.value.found)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_on_4_bit_weights_is_merged_into_the_dequantized_base(
    train: Callable[..., Path], run_export: Export, precision: str
) -> None:
    pytest.importorskip("bitsandbytes")
    run = train("--quantization", "4bit", "--precision", precision)
    exported = run_export(run)
    found = exported.certificate.forms[0].behaviour[0]
    assert found.ratio is not None
    assert found.ratio < 0.01
    assert "dequantized" in exported.certificate.notes[0]
    base = load_file(run.parent.parent / "base/model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert (
        np.abs(load_file(exported.folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"] - base).max()
        > 0.01
    )


def test_a_run_on_4_bit_weights_is_exported_for_mlx_from_the_dequantized_base(
    train: Callable[..., Path], run_export: Export
) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("mlx_lm")
    exported = run_export(train("--quantization", "4bit"), to="mlx")
    found = exported.certificate.forms[0].behaviour[0]
    assert found.rows == "validation"
    assert found.ratio is not None
    assert found.ratio < 0.02
    assert {path.name for path in exported.folder.glob("*.safetensors")} == {"model.safetensors"}


def test_a_run_on_8_bit_weights_is_refused_with_the_way_that_is_left(
    train: Callable[..., Path], run_export: Export
) -> None:
    pytest.importorskip("bitsandbytes")
    run = train("--quantization", "8bit")
    with pytest.raises(LorafitError, match="quantized") as refused:
        run_export(run)
    assert "--to peft" in str(refused.value.fix)
    assert run_export(run, to="peft").folder.is_dir()
