"""Files of the version before the modules were moved into packages are read, listed, resumed and fetched by this one.

`tests/fixtures/first_layout` holds a run of six steps that died after step 4, its bundle, the bundle of the finished run, the
finished adapter, the calibrations, the data cache, the rows, and the base model.
"""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.machines import CPU
from support.paths import TESTS

from lorafit import api
from lorafit.cli.app import main
from lorafit.data.cache import data_cache
from lorafit.data.dataset import load_cached
from lorafit.events import Finished, StepDone, read_events
from lorafit.messages import set_language
from lorafit.planner.calibrate import load_calibration
from lorafit.planner.plan import Plan
from lorafit.run_folders.adapter import read_adapter
from lorafit.run_folders.checkpoint import latest_good, step_of
from lorafit.run_folders.directory import RunDir, saved_config

FILES = TESTS / "fixtures/first_layout"
MODEL = Path("models/tiny")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, as the working directory, with their calibrations and data cache in use."""
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAFIT_CALIBRATIONS", str(tmp_path / "calibrations.json"))
    monkeypatch.setenv("LORAFIT_DATA_CACHE", str(tmp_path / "data_cache"))
    return tmp_path


@pytest.fixture
def run(home: Path) -> RunDir:
    (path,) = (home / "output").iterdir()
    return RunDir(path)


def assert_finished(run: RunDir) -> None:
    """Assert that the run has all six steps and the adapter that the earlier version trained without a stop."""
    events = read_events(run.events)
    assert [event.step for event in events if isinstance(event, StepDone)][-6:] == [1, 2, 3, 4, 5, 6]
    assert any(isinstance(event, Finished) for event in events)
    expected = load_file(FILES / "finished/adapter_model.safetensors")
    found = load_file(run.final_model / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    for name, array in expected.items():  # equal bytes on the machine that made them; another CPU rounds otherwise
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_run_is_listed_and_shown(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    (info,) = api.runs()
    assert (info.name, info.step, info.steps) == (run.name, 4, 6)
    assert main(["runs", "show", run.name]) == 0
    assert "4 of 6" in capsys.readouterr().out


def test_the_reasons_of_its_plan_are_shown_in_chinese(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    english = {choice["reason"] for choice in json.loads(run.plan.read_text("utf-8"))["choices"]}
    assert main(["runs", "show", run.name, "--lang", "zh"]) == 0
    text = capsys.readouterr().out
    set_language("zh")
    reasons = {choice.reason for choice in Plan.load(run.plan).choices}
    set_language("en")
    untranslated = english & reasons
    assert untranslated == {"✓ PyTorch"}
    for reason in reasons - untranslated:
        assert re.search("[\u4e00-\u9fff]", reason), reason
        assert re.search(r"\s*".join(map(re.escape, reason.removeprefix("✓ ").replace(" ", ""))), text), reason


def test_a_checkpoint_is_found_and_its_adapter_read(run: RunDir) -> None:
    path, bad = latest_good(run)
    assert path is not None
    assert (step_of(path), bad) == (4, [])
    config, tensors = read_adapter(path)
    assert (config.r, len(tensors)) == (2, 28)


def test_a_run_is_resumed_to_the_same_adapter(run: RunDir) -> None:
    assert main(["resume", run.name, "--no_supervisor"]) == 0
    assert_finished(run)


def test_a_bundle_is_resumed_to_the_same_adapter(home: Path) -> None:
    assert main(["train", "run.zip", "--model_name", str(MODEL), "--output_dir", "there", "--no_supervisor"]) == 0
    (path,) = (home / "there").glob("*-lora-*")
    assert_finished(RunDir(path))


def test_the_bundle_of_a_finished_run_is_fetched(home: Path) -> None:
    (fetched,) = api.fetch(Path("result.zip"), home / "fetched")
    assert fetched.finished
    found = load_file(fetched.run.final_model / "adapter_model.safetensors")
    expected = load_file(FILES / "finished/adapter_model.safetensors")
    assert all((found[name] == expected[name]).all() for name in expected)


def test_calibrations_are_read(home: Path) -> None:
    known = load_calibration(replace(CPU, chip="AMD EPYC", cores=2, torch_version="2.13.0+cpu"))
    assert known.core_gflops == 85.0
    ((key, measured),) = known.measured.items()
    assert (key, measured.times, measured.slowness) == ("torch/cpu/fast/fp32/none llama 2x16", 2, 1.6161)


def test_a_data_cache_is_used_or_made_again(run: RunDir, home: Path) -> None:
    assert data_cache() == home / "data_cache"
    found = load_cached(saved_config(run), MODEL)
    report = api.plan(saved_config(run))
    assert found is None or len(found.train) == 26
    assert len(report.data.train_lengths) == 26
