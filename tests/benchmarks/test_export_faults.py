"""Planted faults in exports are refused and honest exports are not: some in the fast run, more in the slow one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import export_faults
from export_faults import FAULTS, chosen, kind, verdict
from exports.honest import HONEST
from exports.sources import RECIPES, RUNS, Sources
from exports.trials import Plant, Result, Trial, run

FAST = ("half of alpha (merged bf16, llama)", "a tensor without its delta (merged, llama)",
        "the base's end token instead of the trained one (merged, llama)",
        "marks of the training are left in the template (merged, llama, marks)",
        "a bit is changed later (merged)", "alpha is lost (peft, llama)")  # fmt: skip
WITH_LLAMA_CPP = ("query and key keep their order (gguf f16, llama)", "a stop is missing (ollama q8_0, llama)")
NEEDED = ("xllamacpp", "bitsandbytes", "peft")
Examine = Callable[[Trial], Result]


@pytest.fixture(scope="module")
def examine(tmp_path_factory: pytest.TempPathFactory) -> Examine:
    """A function that runs a trial with models that the tests of this file share."""
    folder = tmp_path_factory.mktemp("faults")
    sources, target = Sources(folder / "made"), folder / "exports"
    for one in (sources.folder, target):
        one.mkdir()
    return lambda trial: run(trial, sources, target)


def named(name: str) -> Trial:
    return next(trial for trial in FAULTS if trial.name == name)


@pytest.mark.parametrize(
    "name",
    [
        *FAST,
        *(
            pytest.param(
                name, marks=pytest.mark.skipif(not find_spec("xllamacpp"), reason="xllamacpp is not installed")
            )
            for name in WITH_LLAMA_CPP
        ),
    ],
)
def test_a_planted_fault_is_refused(name: str, examine: Examine) -> None:
    found = examine(named(name))
    assert found.state == "refused", found.said


@pytest.mark.parametrize("name", ["llama: merged", "llama, marks: merged", "llama: peft"])
def test_an_honest_export_is_not_refused(name: str, examine: Examine) -> None:
    found = examine(next(trial for trial in HONEST + chosen(quick=False)[1] if trial.name == name))
    assert found.state == "written", found.said


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, NEEDED)), reason=f"one of {', '.join(NEEDED)} is not installed")
def test_a_third_of_the_kinds_of_faults(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/export_faults.py"), "--quick", "--json", str(tmp_path / "a.json")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert figures["planted"] == figures["refused"] >= 15


def test_the_full_run_has_enough_of_both_and_each_fault_has_its_honest_export() -> None:
    faults, honest = chosen(quick=False)
    assert len({kind(trial) for trial in faults}) >= export_faults.LEAST_FAULTS
    assert len(honest) >= export_faults.LEAST_HONEST
    assert {trial.source for trial in faults + honest} <= {*RECIPES, *RUNS}
    names = {trial.name for trial in honest}
    assert {trial.same_without_fault for trial in faults if not trial.refused_wish} <= names
    assert len({trial.name for trial in faults}) == len(faults)


def test_what_is_not_refused_and_what_is_wrongly_refused_are_named() -> None:
    fault, honest = Trial("a fault", "llama", "merged", refused_wish=True), Trial("honest", "llama", "merged")
    good = [Result(fault, "refused", "No.", 0.0), Result(honest, "written", "", 0.0)]
    assert verdict(good, quick=True)["ok"]
    assert not verdict(good, quick=False)["ok"]  # too few
    bad = verdict([replace(good[0], state="left"), replace(good[1], state="refused", said="No.")], quick=True)
    assert (bad["ok"], bad["refused"], bad["false_refusals"]) == (False, 0, 1)
    assert bad["not_refused"] == ["a fault: left"]
    assert bad["falsely_refused"] == ["honest: No."]
    assert not any(isinstance(value, dict) for value in bad.values())


def test_a_fault_whose_function_is_never_called_is_no_fault(examine: Examine) -> None:
    unused = Plant(export_faults, "line", lambda original: original)
    assert examine(replace(named(FAST[0]), plant=unused)).state == "idle"
