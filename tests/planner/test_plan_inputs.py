"""The inputs of a plan: the catalogue, safetensors headers on a hub, earlier measurements, and the code path."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.fake_hub import FakeHub
from support.machines import CPU, mac, reason
from support.shapes import llama_1b
from support.tiny import FAMILIES, make_plan, open_engine

from lorafit import registry
from lorafit.config import TrainConfig
from lorafit.errors import ConfigError, HardwareError
from lorafit.hardware import detect
from lorafit.hardware.catalogue.find import CHIPS, chip_of, machine_named, names
from lorafit.hardware.catalogue.lengths import LAWYER_LLAMA
from lorafit.hardware.catalogue.models import known_spec
from lorafit.hardware.detect import Machine
from lorafit.models.demo import demo_model
from lorafit.models.remote_spec import remote_spec
from lorafit.models.spec import read_spec, spec_from
from lorafit.models.weight_files import read_headers
from lorafit.planner import calibrate
from lorafit.planner.calibrate import Calibration, calibration_key, load_calibration, save_measurement
from lorafit.planner.fast_path import FAST, path_of
from lorafit.planner.memory import Layout
from lorafit.planner.plan import Plan
from lorafit.planner.planner import DataStats, make_plan_result
from lorafit.planner.throughput import rates
from lorafit.training import worker
from lorafit.training.preview import find_data, preview_run
from lorafit.units import GIB

LAYOUT = Layout("cpu", "fp32", "none", "adamw", 32, "all-linear", 512, 512, 0, 64, path=FAST)


@pytest.mark.parametrize(
    ("name", "chip", "gib"),
    [
        ("M1 Pro 16GB", "Apple M1 Pro", 16), ("m3 max 64 gb", "Apple M3 Max", 64), ("RTX 3090", "RTX 3090", 24),
        ("T4", "T4", 16), ("p3.2xlarge", "V100", 16), ("colab-t4", "T4", 16), ("kaggle-p100", "P100", 16),
        ("A100-SXM4-80GB", "A100", 80), ("MacBook Pro M1 Max 64GB", "Apple M1 Max", 64), ("NVIDIA A100 80GB", "A100", 80), ("RTX 3080 Ti", "RTX 3080 Ti", 12), ("A10G", "A10G", 24),
    ],
)  # fmt: skip
def test_a_machine_is_known_by_the_name_that_people_use(name: str, chip: str, gib: int) -> None:
    gpu = machine_named(name).gpus[0]
    assert (gpu.name, gpu.memory_bytes) == (chip, gib * GIB)
    assert gpu.available_bytes is not None
    assert gpu.available_bytes < gpu.memory_bytes


@pytest.mark.parametrize(
    ("name", "cores", "gib", "gflops"),
    [("EPYC 8 cores 64GB", 8, 64, 752), ("16 cores", 16, 32, 960), ("Intel Xeon 4 cores 16 GB", 4, 16, 240)],
)
def test_a_processor_is_named_by_its_cores(name: str, cores: int, gib: int, gflops: float) -> None:
    machine = machine_named(name)
    assert (machine.cores, machine.memory_bytes, machine.gpus) == (cores, gib * GIB, ())
    assert rates(machine, replace(LAYOUT, path=FAST)).flops == pytest.approx(gflops * 1e9)


@pytest.mark.parametrize(
    ("model", "way"), [("demo", "lorafit train --demo --dry_run"), ("owner/not-on-this-disk", "--model_name demo")]
)
def test_a_tokenizer_that_is_not_here_is_told_with_the_way_to_get_it(
    model: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path))  # without the demo model
    with pytest.raises(ConfigError) as caught:
        find_data(TrainConfig(model_name=model, dataset_name="demo"))
    assert way in str(caught.value.fix)


@pytest.mark.parametrize(
    ("reported", "chip"),
    [("NVIDIA GeForce RTX 3080 Ti", "RTX 3080 Ti"), ("Tesla P100-PCIE-16GB", "P100"), ("NVIDIA L40S", "L40S"),
     ("Apple M2 Max", "Apple M2 Max"), ("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None)],
)  # fmt: skip
def test_a_chip_is_known_by_the_name_that_the_machine_reports(reported: str, chip: str | None) -> None:
    assert getattr(chip_of(reported), "name", None) == chip


def test_every_name_of_the_catalogue_describes_a_machine_and_every_chip_has_a_source() -> None:
    assert all(machine_named(name).described for name in names())
    assert all(chip.source and chip.teraflops["fp32"] > 0 for chip in CHIPS)


@pytest.mark.parametrize("name", ["M1 Prro", "M1 Pro Max", "4 x A101 80GB", "RTX 3090x", "T4 turbo"])
def test_a_name_with_more_in_it_than_a_chip_is_called_is_not_taken_for_that_chip(name: str) -> None:
    with pytest.raises(HardwareError):
        machine_named(name)


def test_a_size_that_was_never_sold_and_an_unknown_name_are_told_with_what_is_near() -> None:
    with pytest.raises(HardwareError, match="16 GB, 32 GB"):
        machine_named("M1 Pro 17GB")
    with pytest.raises(HardwareError, match="RTX 3090"):
        machine_named("RTX 3091")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824), ("unsloth/Llama-3.2-1B-Instruct", 1_235_814_400),
     ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512), ("meta-llama/Llama-2-13b-chat-hf", 13_015_864_320),
     ("google/gemma-2-9b-it", 9_241_705_984), ("LLM-Research/Meta-Llama-3.1-8B-Instruct", 8_030_261_248)],
)  # fmt: skip
def test_a_models_parameters_are_those_that_its_owner_counts(name: str, parameters: int) -> None:
    spec = known_spec(name)
    assert spec is not None
    assert spec.parameters == parameters


def test_the_demos_shape_in_the_catalogue_is_what_its_files_say() -> None:
    found, wanted = known_spec("demo"), read_spec(demo_model())
    assert found is not None
    assert replace(found, linears=sorted(found.linears)) == replace(wanted, linears=sorted(wanted.linears))


def test_the_guides_data_have_the_rows_of_the_hub_and_the_mean_that_was_counted() -> None:
    lengths = LAWYER_LLAMA.sample(LAWYER_LLAMA.rows, 512)
    assert len(lengths) == 21_476
    assert lengths.mean() == pytest.approx(224.5, rel=0.01)
    assert np.array_equal(lengths, LAWYER_LLAMA.sample(LAWYER_LLAMA.rows, 512))


def test_a_hub_is_asked_for_config_and_headers_alone(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with FakeHub(models={"owner/tiny": models / "llama"}).serve() as hub:
        found = remote_spec("owner/tiny", endpoint=hub.address)
    headers = read_headers(models / "llama" / "model.safetensors")
    config = json.loads((models / "llama" / "config.json").read_text())
    assert found == spec_from(config, headers, models / "llama")
    fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert fetched == {"config.json", "model.safetensors.index.json", "model.safetensors"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_path_told_from_the_shape_is_the_one_that_the_engine_takes(family: str, models: Path) -> None:
    config = json.loads((models / family / "config.json").read_text())
    headers = read_headers(models / family / "model.safetensors")
    predicted = path_of(spec_from(config, headers, models / family), 2048, "none", "cpu")
    engine = open_engine(models / family, make_plan())
    took_fast_path = any("Fast path" in text for text in engine.facts.notes)
    assert (predicted == FAST) == took_fast_path


def test_measurements_come_back_for_this_machine_only_and_the_best_product_counts(tmp_path: Path) -> None:
    path, spec = tmp_path / "calibrations.json", llama_1b()
    save_measurement(CPU, calibration_key(LAYOUT, spec), 1.5, 1.07, path)
    assert load_calibration(CPU, path).slowness(LAYOUT, spec) == 1.5
    assert load_calibration(replace(CPU, chip="another"), path) == Calibration()
    assert load_calibration(CPU, path, measure=lambda: 80.0).core_gflops == 80.0
    assert load_calibration(CPU, path, measure=lambda: 40.0).core_gflops == 80.0, "another process used the CPU"
    faster = load_calibration(CPU, path, measure=lambda: 100.0)
    assert faster.slowness(LAYOUT, spec) == 1.5 * 100 / 80, "the same seconds"
    assert load_calibration(CPU, path).slowness(LAYOUT, spec) == 1.5 * 100 / 80, "written"
    assert load_calibration(replace(CPU, described=True), path, measure=lambda: 1.0) == Calibration()


def test_another_shape_borrows_speed_but_not_memory(tmp_path: Path) -> None:
    path, spec = tmp_path / "calibrations.json", llama_1b()
    save_measurement(CPU, calibration_key(LAYOUT, spec), 1.5, 1.27, path)
    other = replace(spec, hidden=1024)
    assert load_calibration(CPU, path).slowness(LAYOUT, other) == 1.5
    assert load_calibration(CPU, path).memory_factor(LAYOUT, spec) == pytest.approx(1.25)
    assert load_calibration(CPU, path).memory_factor(LAYOUT, other) == 1.0


@pytest.mark.parametrize(("measured", "factor"), [(None, 1.0), (0.7, 1.0), (1.04, 1.0), (1.05, 1.05), (1.13, 1.1)])
def test_measured_memory_only_ever_lowers_a_budget_and_in_steps(measured: float | None, factor: float) -> None:
    assert calibrate.round_memory_factor(measured) == pytest.approx(factor)


def test_measured_speed_changes_the_time_and_no_choice(tmp_path: Path) -> None:
    spec, data = llama_1b(), DataStats(np.full(500, 300), np.full(20, 300), "")
    plain = make_plan_result(TrainConfig(), CPU, spec, data)
    path = tmp_path / "calibrations.json"
    save_measurement(CPU, calibration_key(plain.chosen.layout, spec), 3.0, None, path)
    calibrated = make_plan_result(TrainConfig(), CPU, spec, data, load_calibration(CPU, path))
    assert calibrated.chosen == plain.chosen
    assert calibrated.estimate.step == pytest.approx(3 * plain.estimate.step)
    assert calibrated.estimate.source == "calibrated"


def test_a_damaged_file_of_measurements_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "calibrations.json"
    path.write_text('{"AMD')
    assert load_calibration(CPU, path) == Calibration()
    save_measurement(CPU, "way shape", 1.0, None, path)
    assert "way shape" in load_calibration(CPU, path).measured


def test_a_preview_imports_no_tensor_library(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom lorafit.cli.plan import plan, machines\n"
        "plan(['--machine', 'M1 Pro 16GB', '--json']); plan(['--demo', '--json', '--val_size', '0'])\n"
        "sys.exit(', '.join({'torch', 'mlx', 'transformers', 'bitsandbytes'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


METAL_LIMIT = 52 * GIB


def metal_limit(_device: str) -> int:
    """Stand in for the engine's function that reads Metal's limit."""
    return METAL_LIMIT


def test_a_limit_that_metal_reported_to_a_run_is_used_and_named_by_later_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAFIT_CALIBRATIONS", str(tmp_path / "calibrations.json"))
    here = mac("Apple M4 Max", 64)
    monkeypatch.setattr(detect, "detect_machine", lambda: here)
    monkeypatch.setitem(registry.USABLE_BYTES, "torch", registry.Entry(f"{__name__}:metal_limit", ""))
    config = TrainConfig(demo=True, engine="torch")
    before = preview_run(config, None).plan
    assert before.available_bytes == 64 * GIB * 2 // 3
    assert "an estimate: two thirds of the memory" in reason(before, "memory")
    during = plan_on(worker._with_metal_limit(here, "mps", "torch"))
    assert "(Metal's limit)" in reason(during, "memory")
    after = preview_run(config, None).plan
    assert after.available_bytes == METAL_LIMIT
    assert "Metal's limit, read on 20" in reason(after, "memory")
    assert calibrate.with_metal_limit(mac("Apple M4 Max", 128), load_calibration(here)) == mac("Apple M4 Max", 128)


def plan_on(machine: Machine) -> Plan:
    """Return the plan for Llama-3.2-1B with PyTorch on `machine`."""
    data = DataStats(np.full(500, 300), np.full(20, 300), "")
    return make_plan_result(TrainConfig(engine="torch"), machine, llama_1b(), data).plan
