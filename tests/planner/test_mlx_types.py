"""MLX is chosen only for model types that the installed mlx_lm has. Its files tell, without an import of MLX."""

from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from support.machines import facts
from support.shapes import llama_1b

from lorafit.config import TrainConfig
from lorafit.errors import ModelError
from lorafit.hardware.catalogue.find import machine_named
from lorafit.models.spec import ModelSpec, Packed
from lorafit.planner import mlx_types
from lorafit.planner.plan import Plan
from lorafit.planner.planner import make_plan


@pytest.fixture(autouse=True)
def mlx_lm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An mlx_lm with the types llama and phi3, where mistral is computed as llama."""
    (tmp_path / "models").mkdir()
    for kind in ("llama", "phi3"):
        (tmp_path / "models" / f"{kind}.py").touch()
    (tmp_path / "utils.py").write_text('MODEL_REMAPPING = {"mistral": "llama"}\n')
    spec = ModuleSpec("mlx_lm", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(mlx_types, "find_spec", lambda name: spec)


def planned(spec: ModelSpec, engine: str = "auto") -> Plan:
    config = TrainConfig(model_name="model", dataset_name="data", engine=engine)  # type: ignore[arg-type]
    return make_plan(config, machine_named("M3 Max 64GB"), spec, facts())


@pytest.mark.parametrize(("kind", "engine"), [("llama", "mlx"), ("mistral", "mlx"), ("bamba", "torch")])
def test_the_engine_is_one_that_has_the_type(kind: str, engine: str) -> None:
    plan = planned(replace(llama_1b(), model_type=kind))
    assert (plan.engine, plan.device) == (engine, "mps")
    reason = next(choice.reason for choice in plan.choices if choice.setting == "engine")
    assert ("does not have the model type bamba" in reason) == (engine == "torch")


def test_mlx_that_was_asked_for_is_refused_with_the_way_out() -> None:
    with pytest.raises(ModelError, match="--engine torch"):
        planned(replace(llama_1b(), model_type="bamba"), "mlx")


def test_files_that_mlx_quantized_need_a_newer_mlx_lm() -> None:
    with pytest.raises(ModelError, match="pip install -U mlx-lm"):
        planned(replace(llama_1b(), model_type="bamba", packed=Packed(4, 1, 1)))


def test_every_type_counts_as_known_where_mlx_lm_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlx_types, "find_spec", lambda name: None)
    assert planned(replace(llama_1b(), model_type="bamba")).engine == "mlx"
