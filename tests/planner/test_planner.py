"""The plan suits the machine and gives its reasons: described machines, Llama-3.2-1B's shape, known lengths."""

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest
from support.machines import CPU, M1, M2_MAX, P100, RTX_3090, T4, cuda, facts, mac, plan_for, reason
from support.shapes import llama_1b

from lorafit.config import TrainConfig
from lorafit.errors import ConfigError, DoesNotFit, HardwareError
from lorafit.hardware.catalogue.find import machine_named
from lorafit.hardware.catalogue.models import known_spec
from lorafit.hardware.detect import Machine
from lorafit.messages import set_language
from lorafit.planner.data_stats import validation_shapes
from lorafit.planner.estimate import as_estimate
from lorafit.planner.memory_budget import MARGIN, available_bytes
from lorafit.planner.plan import Plan
from lorafit.planner.planner import make_plan_result, make_schedule
from lorafit.planner.search import WORTHWHILE_SPEEDUP, loss_chunk
from lorafit.planner.speed import load_seconds
from lorafit.units import GIB


def device_and_precision(plan: Plan) -> tuple[str, str, str, str]:
    return plan.device, plan.precision, plan.quantization, plan.optimizer


@pytest.mark.parametrize(
    ("machine", "chosen"),
    [
        (CPU, ("cpu", "fp32", "none", "adamw")),
        (replace(M2_MAX, described=True), ("mps", "bf16", "none", "adamw")),
        (cuda(RTX_3090), ("cuda", "bf16", "4bit", "paged_adamw_8bit")),
        (cuda(T4), ("cuda", "fp16", "4bit", "paged_adamw_8bit")),
        (cuda(P100), ("cuda", "fp16", "4bit", "paged_adamw_8bit")),
        (cuda(RTX_3090, torch_cuda=None), ("cpu", "fp32", "none", "adamw")),
        (replace(CPU, cpu_bf16=True), ("cpu", "fp32", "none", "adamw")),
    ],
)
def test_each_machine_gets_its_device_and_precision(machine: Machine, chosen: tuple[str, str, str, str]) -> None:
    assert device_and_precision(plan_for(machine)) == chosen


def test_what_is_asked_is_obeyed() -> None:
    asked = {"device": "cpu", "precision": "fp32", "quantization": "4bit", "optimizer": "adamw"}
    plan = plan_for(cuda(RTX_3090), **asked, token_budget=700, recompute=3, batch_size=2, save_steps=7, eval_steps=5)
    assert device_and_precision(plan) == ("cpu", "fp32", "4bit", "adamw")
    assert (plan.token_budget, plan.recompute, plan.max_micro_batch) == (700, 3, 2)
    assert (plan.save_steps, plan.eval_steps) == (7, 5)


@pytest.mark.parametrize(("name", "old"), [("kaggle-p100", True), ("p3.2xlarge", True), ("colab-t4", False)])
def test_a_gpu_older_than_turing_is_told_which_pytorch_knows_it(name: str, old: bool) -> None:
    warnings = [choice.reason for choice in plan_for(machine_named(name)).choices if choice.setting == "pytorch"]
    assert bool(warnings) == old
    assert all("cu126" in warning and "T4" in warning for warning in warnings)


def test_a_gpu_that_the_installed_torch_cannot_use_is_named() -> None:
    assert "RTX 3090" in reason(plan_for(cuda(RTX_3090, torch_cuda=None)), "device")


@pytest.mark.parametrize(
    ("machine", "device"), [(CPU, "cuda"), (M2_MAX, "cuda"), (CPU, "mps"), (cuda(T4, None), "cuda")]
)
def test_a_device_that_is_not_there_is_an_error_that_names_what_is(machine: Machine, device: str) -> None:
    with pytest.raises(HardwareError) as error:
        plan_for(machine, device=device)
    assert machine.chip in str(error.value)
    assert error.value.fix


def test_fp16_on_a_processor_is_refused() -> None:
    with pytest.raises(ConfigError, match="10 to 40 times slower"):
        plan_for(CPU, precision="fp16")


def test_bf16_on_a_processor_is_how_weights_are_stored_where_float32_does_not_fit() -> None:
    assert plan_for(CPU, precision="bf16").precision == "bf16"
    small = plan_for(replace(CPU, available_bytes=5 * GIB), data=facts(longest=300))
    assert small.precision == "bf16"
    assert "float32 does not fit" in reason(small, "precision")


@pytest.mark.parametrize("setting", [{"optimizer": "paged_adamw_8bit"}, {"quantization": "8bit"}])
def test_what_has_no_kernel_on_mps_is_refused(setting: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="8-bit"):
        plan_for(M2_MAX, engine="torch", **setting)


def test_mlx_is_taken_on_apple_silicon_and_says_what_is_true_of_4bit_there() -> None:
    mac_with_mlx = replace(M2_MAX, described=True)
    plan = plan_for(mac_with_mlx)
    assert plan.engine == "mlx"
    assert "MLX's own 4-bit" in reason(plan, "quantization")
    assert plan_for(mac_with_mlx, quantization="8bit").quantization == "8bit"
    assert plan_for(mac_with_mlx, engine="torch").engine == "torch"
    for setting in ({"precision": "fp16"}, {"optimizer": "paged_adamw_8bit"}):
        with pytest.raises(ConfigError):
            plan_for(mac_with_mlx, **setting)
    with pytest.raises(ConfigError, match="MLX does not run on CUDA"):
        plan_for(cuda(T4), engine="mlx")


def test_mps_with_a_pytorch_that_multiplies_wrongly_is_refused_on_m1_and_m2_only() -> None:
    with pytest.raises(HardwareError, match="wrongly"):
        plan_for(mac("Apple M1", 16, 11, torch_version="2.13.0"), engine="torch")
    assert plan_for(mac("Apple M1", 16, 11, torch_version="2.13.0"), device="cpu").device == "cpu"
    assert plan_for(mac("Apple M3", 16, 11, torch_version="2.13.0"), engine="torch").device == "mps"


def test_on_mps_the_user_reads_these_lines_in_chinese() -> None:
    set_language("zh")
    try:
        plan = plan_for(M2_MAX, engine="torch")
    finally:
        set_language("en")
    assert reason(plan, "device") == "✓ 检测到 Apple Silicon（MPS）"
    assert reason(plan, "quantization") == (
        "⚠️  PyTorch 的 MPS 默认不用 4-bit（`--quantization 4bit` 会尝试 bitsandbytes 的 MPS 算子）"
    )
    assert reason(plan, "precision") == "✓ 使用 float32 精度（在 MPS 上兼容性最好）"


def test_on_mps_the_user_reads_these_lines_in_english() -> None:
    plan = plan_for(M2_MAX, engine="torch")
    assert reason(plan, "device") == "✓ Apple Silicon (MPS) found"
    assert reason(plan, "quantization").startswith(
        "⚠️  4-bit is off with PyTorch's MPS (`--quantization 4bit` tries bitsandbytes' MPS operators)"
    )
    assert reason(plan, "precision") == "✓ Using float32 precision (most compatible on MPS)"


def test_mps_takes_bf16_where_float32_cannot_fit() -> None:
    plan = plan_for(M1, engine="torch")
    assert plan.precision == "bf16"
    assert "float32 does not fit" in reason(plan, "precision")


def test_an_unmeasured_mps_limit_is_two_thirds_of_the_memory_and_said_to_be_an_estimate() -> None:
    plan = plan_for(mac("Apple M2 Max", 32))
    assert plan.available_bytes == 32 * GIB * 2 // 3
    assert "an estimate: two thirds of the memory" in reason(plan, "memory")


@pytest.mark.parametrize(
    ("machine", "longest", "budget"),
    [(CPU, 512, 1024), (M2_MAX, 512, 2048), (cuda(RTX_3090), 512, 4096), (CPU, 1500, 2048)],
)
def test_the_budget_is_the_largest_useful_one_and_holds_the_longest_sample(
    machine: Machine, longest: int, budget: int
) -> None:
    plan = plan_for(machine, data=facts(longest=longest))
    assert (plan.token_budget, plan.recompute) == (budget, 0)


def test_a_sample_longer_than_every_usual_budget_is_the_budget() -> None:
    assert plan_for(replace(CPU, available_bytes=200 * GIB), data=facts(longest=6000)).token_budget == 6000


def test_less_memory_means_slower_plans_then_a_refusal_and_never_more_than_may_be_used() -> None:
    chosen = []
    for hundredths in range(1600, 500, -3):
        machine = replace(CPU, available_bytes=hundredths * GIB // 100)
        try:
            found = make_plan_result(TrainConfig(precision="fp32", quantization="none"), machine, llama_1b(), facts())
        except DoesNotFit:
            break
        assert found.plan.predicted_peak_bytes <= MARGIN * found.plan.available_bytes
        chosen.append(found.chosen)
    times = [candidate.seconds for candidate in chosen]
    assert all(later >= earlier / (1 + WORTHWHILE_SPEEDUP) for earlier, later in itertools.pairwise(times))
    assert (chosen[0].token_budget, chosen[0].layout.recompute) == (1024, 0)
    assert chosen[-1].layout.recompute >= 15
    assert len({candidate.layout.recompute for candidate in chosen}) > 5


def test_some_layers_recompute_where_all_would_be_more_than_is_needed() -> None:
    rooms = (replace(CPU, available_bytes=tenths * GIB // 10) for tenths in range(66, 76, 2))
    chosen = {plan_for(machine, precision="fp32", quantization="none").recompute for machine in rooms}
    assert any(0 < recompute < 16 for recompute in chosen)


def test_what_does_not_fit_is_told_term_by_term_with_flags_that_would() -> None:
    machine, asked = replace(CPU, available_bytes=5 * GIB), {"precision": "fp32"}
    with pytest.raises(DoesNotFit) as error:
        plan_for(machine, **asked, quantization="none")
    assert "base weights 4.6 GiB" in str(error.value.found)
    assert "5.0 GiB" in error.value.what
    assert "--quantization 4bit" in str(error.value.fix)
    assert plan_for(machine, **asked, quantization="4bit").quantization == "4bit"


def test_the_smaller_model_and_the_machine_that_are_named_do_fit() -> None:
    with pytest.raises(DoesNotFit) as error:
        plan_for(replace(CPU, available_bytes=3 * GIB), quantization="none")
    name = re.search(r"--model_name (\S+):", str(error.value.fix))
    spec = known_spec(name[1]) if name else None
    assert spec is not None
    assert plan_for(replace(CPU, available_bytes=3 * GIB), spec, quantization="none")
    larger = re.search(r'--machine "(.+?)"', str(error.value.fix))
    assert larger
    assert plan_for(machine_named(larger[1]), quantization="none")


def test_where_nothing_else_fits_the_base_is_quantised_and_that_is_said() -> None:
    plan = plan_for(replace(CPU, available_bytes=int(3.6 * GIB)), data=facts(longest=300))
    assert plan.quantization == "4bit"
    assert "nothing else fits" in reason(plan, "quantization")


def test_4_bits_are_advised_on_a_mac_too_and_count_for_the_smaller_model() -> None:
    spec = known_spec("Qwen/Qwen2.5-7B-Instruct")
    with pytest.raises(DoesNotFit) as refused:
        plan_for(machine_named("M1 8GB"), known_spec("meta-llama/Llama-3.2-3B-Instruct"), quantization="none")
    assert "--quantization 4bit" in (refused.value.fix or "")
    with pytest.raises(DoesNotFit) as refused:
        plan_for(machine_named("M1 8GB"), spec)
    assert "Qwen2.5-3B" in (refused.value.fix or "")
    assert re.search(r"Total with 4-bit base weights: [67]\.\d GiB", refused.value.found or ""), "tried in vain"


def test_a_shorter_length_is_advised_only_where_it_would_fit() -> None:
    machine, long = replace(CPU, available_bytes=9 * GIB), facts(longest=60_000)
    with pytest.raises(DoesNotFit) as error:
        plan_for(machine, data=long)
    assert "--max_length 1024" in str(error.value.fix)
    assert plan_for(machine, data=facts(longest=1024)).recompute >= 0
    with pytest.raises(DoesNotFit) as error:
        plan_for(replace(CPU, available_bytes=2 * GIB), data=long)
    assert "--max_length" not in str(error.value.fix)


def test_a_mac_under_pressure_gives_its_gpu_no_more_than_is_free() -> None:
    assert available_bytes(M2_MAX, "mps") == int(21.3 * GIB)
    assert available_bytes(replace(M2_MAX, pressed=True), "mps") == M2_MAX.available_bytes == 16 * GIB


def test_a_given_token_budget_is_obeyed_with_a_warning_where_it_does_not_fit() -> None:
    plan = plan_for(replace(CPU, available_bytes=2 * GIB), token_budget=256)
    assert plan.token_budget == 256
    assert reason(plan, "memory").startswith("⚠️")


@pytest.mark.parametrize(("vocab", "rows"), [(49152, 512), (128256, 261), (10_000_000, 32)])
def test_a_chunk_of_the_loss_stays_under_128_mib_within_bounds(vocab: int, rows: int) -> None:
    assert loss_chunk(vocab) == rows


@pytest.mark.parametrize(
    ("settings", "steps", "warmup"),
    [
        ({}, 188, 10),  # ceil(1000 x 3 / 16), ceil(0.05 x 188)
        ({"num_epochs": 0.5}, 32, 2),
        ({"max_steps": 7}, 7, 1),
        ({"max_steps": 1, "warmup_ratio": 1.0}, 1, 0),
        ({"batch_size": 2, "gradient_accumulation_steps": 4}, 375, 19),
    ],
)
def test_steps_and_warm_up_are_rounded_up(settings: dict[str, object], steps: int, warmup: int) -> None:
    plan = plan_for(CPU, **settings)
    assert (plan.steps, plan.warmup_steps) == (steps, warmup)


@pytest.mark.parametrize("valid", [1, 10, 50, 200])
@pytest.mark.parametrize("rows", [20, 300, 21476])
def test_scheduled_evaluations_cost_at_most_5_percent(rows: int, valid: int) -> None:
    schedule = make_schedule(TrainConfig(), 16, facts(rows, valid, longest=300))
    evaluations = schedule.steps // schedule.eval_steps
    assert evaluations <= 20
    # The evaluation at the end always takes place.
    assert evaluations == 1 or evaluations * valid / 2 <= 0.05 * schedule.steps * 16


def test_an_evaluation_of_many_rows_takes_as_many_times_as_long() -> None:
    few, many = (facts(valid=valid) for valid in (400, 4000))
    (some, once), (first, times) = validation_shapes(few, 2048), validation_shapes(many, 2048)
    assert (some, once) == (first, 1.0)
    assert times == pytest.approx(10, rel=0.1)
    assert validation_shapes(facts(valid=0), 2048) == ([], 0.0)


def test_the_time_that_is_left_after_measuring_has_no_loading_in_it() -> None:
    planned = make_plan_result(TrainConfig(), CPU, llama_1b(), facts())
    before, after = (
        as_estimate(planned.work, planned.chosen.layout, 2.0, 1.0, 100.0, source)
        for source in ("catalogue", "measured")
    )
    assert before.total - after.total == pytest.approx(load_seconds(llama_1b()))


def test_without_validation_rows_nothing_is_evaluated() -> None:
    assert plan_for(CPU, data=facts(valid=0)).eval_steps == 0


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = plan_for(M2_MAX)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    ("machine", "settings"),
    [
        (machine_named("M1 Pro 16GB"), {}),
        (M2_MAX, {"engine": "torch"}),
        (CPU, {"processes": 2}),
        (cuda(P100), {"eval_steps": 9}),
    ],
)
def test_a_kept_plan_is_told_in_its_readers_language(
    machine: Machine, settings: dict[str, object], tmp_path: Path
) -> None:
    plans = {}
    try:
        for language in ("zh", "en"):
            set_language(language)
            plans[language] = plan_for(machine, **settings)
        plans["en"].save(tmp_path / "plan.json")
        set_language("zh")
        assert Plan.load(tmp_path / "plan.json").choices == plans["zh"].choices
        assert plans["zh"].choices != plans["en"].choices
    finally:
        set_language("en")
