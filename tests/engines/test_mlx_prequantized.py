"""A model that mlx_lm quantized trains without another quantization, and only with MLX."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import dequantized, engine_variants, tiny

from lorafit.config import TrainConfig
from lorafit.engines.base import Setup
from lorafit.errors import ModelError
from lorafit.events import Event, Finished, StepDone, Warned
from lorafit.models.spec import read_spec
from lorafit.planner.memory import weights_bytes
from lorafit.training.worker import train_in_process

pytest.importorskip("mlx.core", reason="MLX has no wheel here, or is not installed: pip install 'lorafit[mlx]'")
mlx_lm = pytest.importorskip("mlx_lm")

from mlx.utils import tree_flatten  # noqa: E402

from lorafit.engines.mlx.load import load_base  # noqa: E402

WIDE = {"hidden_size": 64, "intermediate_size": 128}  # widths that groups of 64 divide
PLAN = tiny.make_plan(engine="mlx", token_budget=100)
MLX = next(way for way in engine_variants.WAYS if way.engine == "mlx")


@pytest.fixture(scope="module")
def base(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_chat_model(tmp_path_factory.mktemp("base"), demo_folder, **WIDE)


@pytest.fixture(scope="module", params=["4 bits", "mixed_4_6"])
def quantised(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `mlx_lm.convert -q` wrote; embedding and head are quantized too."""
    folder = tmp_path_factory.mktemp("mlx") / "model"
    recipe = None if request.param == "4 bits" else request.param
    mlx_lm.convert(str(base), str(folder), quantize=True, q_group_size=64, q_bits=4, quant_predicate=recipe)
    return folder


def settings(folder: Path, output: Path) -> dict[str, object]:
    return {
        "model_name": str(folder), "dataset_name": "demo", "max_samples": 20, "val_size": 4.0, "max_length": 64,
        "max_steps": 2, "effective_batch": 2, "learning_rate": 1e-2, "lora_r": 4, "output_dir": str(output), "device": "cpu",
    }  # fmt: skip


def test_a_folder_that_mlx_lm_quantised_is_trained_as_it_is_with_a_note(quantised: Path, tmp_path: Path) -> None:
    events: list[Event] = list(train_in_process(TrainConfig(**settings(quantised, tmp_path), engine="mlx")))  # type: ignore[arg-type]
    notes = [event.text for event in events if isinstance(event, Warned)]
    assert any("already quantized for MLX (4-bit)" in note for note in notes)
    assert any("Fast path" in note for note in notes)
    assert len([event for event in events if isinstance(event, StepDone)]) == 2
    assert any(isinstance(event, Finished) for event in events)


def test_pytorch_refuses_it_and_says_what_to_do(quantised: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        list(train_in_process(TrainConfig(**settings(quantised, tmp_path), engine="torch")))  # type: ignore[arg-type]
    assert "quantized for MLX" in error.value.what
    assert "--engine mlx" in str(error.value.fix)


def test_other_bits_than_it_has_are_refused(quantised: Path) -> None:
    with pytest.raises(ModelError, match="different number of bits"):
        MLX.open(quantised, replace(PLAN, quantization="8bit"))
    assert MLX.open(quantised, replace(PLAN, quantization="4bit")).facts.supports_packing


def test_its_gradients_are_those_through_its_weights_written_out(base: Path, quantised: Path, tmp_path: Path) -> None:
    engine = MLX.open(quantised, PLAN)
    exact = dequantized.plain_model(engine, base, tmp_path / "plain")
    adapter = engine_variants.start_with_b(engine, tmp_path / "adapter")
    loss, grads = engine_variants.loss_and_gradients(MLX, quantised, PLAN, adapter, tmp_path / "a")
    right, wanted = engine_variants.loss_and_gradients(MLX, exact, PLAN, adapter, tmp_path / "b")
    assert loss == pytest.approx(right, rel=1e-5)
    assert engine_variants.worst(grads, wanted) < 1e-4
    assert json.loads((quantised / "config.json").read_text())["quantization"]["bits"] == 4
    assert not np.isnan(loss)


def test_the_planner_reads_its_shape_and_its_bytes_from_the_files_alone(base: Path, quantised: Path) -> None:
    spec, before = read_spec(quantised), read_spec(base)
    assert sorted(spec.linears) == sorted(before.linears)
    assert spec.parameters == before.parameters
    loaded = load_base(Setup(quantised, "x", "cpu", "fp32", plan=PLAN)).model
    loaded_bytes = sum(array.nbytes for _name, array in tree_flatten(loaded.parameters()))
    assert weights_bytes(spec, "fp32", "none") == loaded_bytes
