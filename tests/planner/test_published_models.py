"""Plans for the shapes of models that people tune: the published counts of parameters, and what fits on two machines."""

from functools import cache
from pathlib import Path

import pytest
from support.published import MODELS
from support.skeletons import on_meta, write_skeleton

from lorafit.config import TrainConfig
from lorafit.errors import DoesNotFit
from lorafit.hardware.catalogue.find import machine_named
from lorafit.models.spec import ModelSpec, read_spec
from lorafit.planner.planner import PlanResult, make_plan_result
from lorafit.planner.table import lawyer_llama

CARD, MAC = "RTX 3090", "M3 Max 64GB"
FITS_ON_CARD = {"gemma-4-E4B", "Qwen3-VL-8B"}
FITS_ON_MAC = {"gpt-oss-20b", "gemma-4-E4B", "gemma-4-31B", "Qwen3-VL-8B"}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> "Shapes":
    return Shapes(tmp_path_factory.mktemp("models"))


class Shapes:
    """The shapes of the published models, each made once."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.of = cache(self._of)

    def _of(self, name: str) -> ModelSpec:
        write_skeleton(self.place / name, on_meta(MODELS[name].config()))
        return read_spec(self.place / name)


def planned(spec: ModelSpec, machine: str) -> PlanResult:
    config = TrainConfig(model_name="model", dataset_name="data", max_length=512)
    return make_plan_result(config, machine_named(machine), spec, lawyer_llama(512))


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_that_the_owner_states(name: str, shapes: Shapes) -> None:
    spec, stated = shapes.of(name), MODELS[name]
    assert (spec.parameters + spec.other_parameters) / 1e9 == pytest.approx(stated.billions, rel=0.02)
    if stated.active_billions is not None:
        unused = 0 if stated.embedding_counts else spec.vocab * spec.hidden
        assert (spec.active_parameters - unused) / 1e9 == pytest.approx(stated.active_billions, rel=0.02)


@pytest.mark.parametrize("machine", [CARD, MAC])
@pytest.mark.parametrize("name", MODELS)
def test_a_plan_fits_or_says_what_would(name: str, machine: str, shapes: Shapes) -> None:
    spec = shapes.of(name)
    if name in (FITS_ON_CARD if machine == CARD else FITS_ON_MAC):
        plan = planned(spec, machine).plan
        assert plan.predicted_peak_bytes <= 0.9 * plan.available_bytes
        adapter = next(choice for choice in plan.choices if choice.setting == "adapter")
        assert f"on {len(spec.linears)} of {len(spec.linears)} linear layers" in adapter.reason
        assert ("get no adapter" in adapter.reason) == bool(spec.expert_weights)
        return
    with pytest.raises(DoesNotFit) as caught:
        planned(spec, machine)
    assert "--model_name" in str(caught.value.fix)
    if spec.expert_weights:
        assert "stay unquantized" in str(caught.value.found)


def test_a_version_that_mlx_quantized_is_named_where_its_experts_would_fit(shapes: Shapes) -> None:
    with pytest.raises(DoesNotFit, match=r"a version of this model that mlx_lm quantized to 4 bits"):
        planned(shapes.of("Qwen3.6-35B-A3B"), MAC)
    with pytest.raises(DoesNotFit) as caught:
        planned(shapes.of("DeepSeek-V3"), MAC)
    assert "mlx_lm" not in str(caught.value)


def test_chosen_experts_alone_take_time(shapes: Shapes) -> None:
    mixed, dense = planned(shapes.of("gpt-oss-20b"), MAC), planned(shapes.of("gemma-4-E4B"), MAC)
    assert mixed.estimate.step < 4 * dense.estimate.step  # 2.8 times the parameters, of which a fifth computes a token
