"""`lorafit doctor` on this machine and on described machines: faults, fixes, exit codes, and removal of secrets."""

import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_secrets import TOKEN
from support.machine_outputs import INTEL, M1, M2_MAX, P100, ROSETTA, RTX_3090, linux, mac
from support.paths import ROOT

from lorafit import api
from lorafit.cli.app import main
from lorafit.diagnostics import engines, examine, self_test
from lorafit.diagnostics.finding import Finding, Report
from lorafit.diagnostics.machine import machine_findings, nvidia_driver
from lorafit.diagnostics.packages import Packages, package_findings
from lorafit.errors import HardwareError
from lorafit.hardware.detect import Gpu, Machine
from lorafit.registry import ENGINES, QUANTIZATIONS, SELF_TESTS, Entry
from lorafit.units import GIB

Output = pytest.CaptureFixture[str]

# Hides packages from a Python process and its children, as if they were not installed. Importing a package in DEADLY
# ends the process.
SITE = """
import importlib.metadata, os, signal, sys

HIDDEN, DEADLY = {hidden!r}, {deadly!r}

class Hide:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in DEADLY:
            os.kill(os.getpid(), signal.SIGABRT)
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hide)
find = importlib.metadata.MetadataPathFinder.find_distributions
importlib.metadata.MetadataPathFinder.find_distributions = classmethod(
    lambda cls, context=importlib.metadata.DistributionFinder.Context(): () if context.name in HIDDEN else find(context)
)
"""


def run_doctor(
    folder: Path, *flags: str, hidden: tuple[str, ...] = (), deadly: tuple[str, ...] = (), hub: str = "127.0.0.1:9"
) -> tuple[int, str]:
    """Run the doctor with a token and the home folder `folder`/home/alice. Return its exit code and its output."""
    home = folder / "home" / "alice"
    home.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(SITE.format(hidden=hidden, deadly=deadly))
    environ = {**os.environ, "HOME": str(home), "USER": "alice", "LOGNAME": "alice", "HF_TOKEN": TOKEN,
               "HF_HOME": str(home / "models"), "HF_ENDPOINT": f"http://alice:pass1234@{hub}",
               "PYTHONPATH": f"{folder}:{ROOT}", "LORAFIT_LANG": "en"}  # fmt: skip
    command = [sys.executable, "-m", "lorafit", "doctor", "--output_dir", str(home / "runs"), *flags]
    done = subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


# this machine


@pytest.fixture(scope="module")
def bug_report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """Folder, exit code and output of `doctor --json` with a hub that accepts connections and never answers."""
    folder = tmp_path_factory.mktemp("bug_report")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        return folder, *run_doctor(folder, "--json", hub=f"127.0.0.1:{silent.getsockname()[1]}")


def test_a_bug_report_has_the_self_tests_and_no_secret(bug_report: tuple[Path, int, str]) -> None:
    folder, code, text = bug_report
    report = json.loads(text)
    assert (code, report["well"]) == (0, True), text
    engines = {finding["what"]: finding["mark"] for finding in report["findings"] if finding["part"] == "works"}
    assert engines.keys() == {"device", *ENGINES, "4-bit", "8-bit"}
    assert engines["torch"] == "good"
    assert report["packages"]["torch"] == report["machine"]["torch_version"]
    assert report["machine"]["memory_bytes"] > 0
    found = {finding["what"]: finding["found"] for finding in report["findings"]}
    assert found["runs"].startswith("~/runs (")
    assert found["models"].startswith("~/models")
    for secret in (TOKEN, "alice", "pass1234", str(folder / "home")):
        assert secret not in text


def test_a_hub_that_does_not_answer_is_reported_and_fails_nothing(bug_report: tuple[Path, int, str]) -> None:
    _folder, code, text = bug_report
    (finding,) = [finding for finding in json.loads(text)["findings"] if finding["what"] == "model hub"]
    assert finding["mark"] == "poor"
    assert "no response within 2 s" in finding["found"]
    assert "--hf_endpoint" in finding["fix"]
    assert code == 0


def test_without_torch_it_names_the_packages_to_install_and_ends_with_2(tmp_path: Path) -> None:
    code, text = run_doctor(tmp_path, hidden=("torch", "bitsandbytes"))
    assert code == 2
    assert re.search(r"✗ +torch +not installed\n +.*python.* -m pip install 'torch>=", text)
    assert re.search(r"✗ +torch +not installed: torch\n +\S*python\S* -m pip install torch transformers\n", text)
    assert "✗ Training cannot run here yet" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]| $", text, re.M), "plain lines in a pipe"


def test_a_backend_that_ends_its_process_does_not_end_the_doctor(tmp_path: Path) -> None:
    code, text = run_doctor(tmp_path, deadly=("torch",))
    assert code == 2
    assert re.search(r"✗ +torch +the process ended with SIGABRT", text)
    assert "runs" in text.split("Folders and model hub")[1]


def test_exit_code_and_language_follow_the_report(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    machine = mac(M1)
    for findings, code in (([Finding("works", "a", "b", "poor")], 0), ([Finding("works", "a", "b", "bad")], 2)):
        monkeypatch.setattr(api, "doctor", lambda _dir, f=findings: Report(machine, f, {}, None))
        assert main(["doctor"]) == code
        assert main(["doctor", "--json"]) == code


# described machines


def packages(folder: Path, **versions: tuple[str, str]) -> Packages:
    """Write metadata of installed packages (name -> version and platform of the wheel) and of our own requirements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [f"Provides-Extra: {name}" for name in project["optional-dependencies"]]
    optional = [
        f'Requires-Dist: {requirement}; extra == "{name}"'
        for name, requirements in project["optional-dependencies"].items()
        for requirement in requirements
        if ";" not in requirement
    ]
    requirements = [*extras, *(f"Requires-Dist: {line}" for line in project["dependencies"]), *optional]
    for name, (version, tag) in {"lorafit": ("0.1.0", "any"), **versions}.items():
        metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir(parents=True)
        lines = [
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
            *(requirements if name == "lorafit" else []),
        ]
        (metadata / "METADATA").write_text("\n".join(lines) + "\n")
        (metadata / "WHEEL").write_text(f"Wheel-Version: 1.0\nTag: cp311-cp311-{tag}\n")
    return Packages([str(folder)])


def with_torch(machine: Machine, version: str = "2.13.0", cuda: str | None = None) -> Machine:
    return replace(machine, torch_version=version, torch_cuda=cuda)


def card(machine: Machine, name: str, capability: float | None) -> Machine:
    return replace(machine, gpus=(Gpu(name, "cuda", 16 * GIB, 15 * GIB, capability),))


def faults_of(name: str, findings: Iterator[Finding]) -> list[Finding]:
    """Return the findings on `name` that are poor or bad."""
    return [finding for finding in findings if finding.what == name and finding.mark in ("poor", "bad")]


def report_without_self_tests(findings: list[Finding], machine: Machine) -> Report:
    return examine.report(machine, [*findings, *examine.self_test_findings(machine, None)], Packages([]))


@pytest.mark.parametrize(("outputs", "word"), [(INTEL, "Intel"), (ROSETTA, "Rosetta")])
def test_a_mac_without_pytorch_gets_a_fix_and_no_self_tests(outputs: dict[str, str], word: str) -> None:
    machine = mac(outputs, "x86_64")
    assert examine.start_self_tests(machine) is None
    report = report_without_self_tests(list(machine_findings(machine, None, {})), machine)
    assert not report.well
    (bad,) = [finding for finding in report.findings if finding.mark == "bad" and finding.part == "machine"]
    assert word in bad.what
    assert bad.fix
    assert json.loads(report.to_json())["well"] is False


def test_an_m2_with_a_torch_whose_matmuls_are_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # For Python, a package that is not installed. Training prefers MLX, which would make PyTorch's fault irrelevant.
    monkeypatch.setitem(sys.modules, "mlx", None)
    machine = with_torch(mac(M2_MAX))
    (finding,) = [f for f in report_without_self_tests([], machine).findings if f.what == "device"]
    assert finding.mark == "bad"
    assert "torch>=2.14" in (finding.fix or "")
    assert engines.device_finding(with_torch(mac(M2_MAX), "2.14.1")).mark == "good"


def test_an_m1_is_described_in_words() -> None:
    found = {f.what: f.found for f in machine_findings(mac(M1), None, {"HF_ENDPOINT": "x", "HF_TOKEN": TOKEN})}
    assert found["CPU"] == "Apple M1, cores: 4, arm64"
    assert found["system"] == "macOS 15.6.1"
    assert found["memory"] == "8.0 GiB, 1.7 GiB available (without swap)"
    assert found["GPU"] == "Apple M1, mps, unified memory"
    assert found["environment"] == "HF_ENDPOINT=x"


def test_a_card_is_described_with_memory_capability_and_driver(tmp_path: Path) -> None:
    machine = linux(tmp_path, RTX_3090)
    smi = {"nvidia-smi --query-gpu=driver_version --format=csv,noheader": "580.95.05\n580.95.05"}
    driver = nvidia_driver(lambda cmd: smi.get(" ".join(cmd)))
    found = {f.what: f.found for f in machine_findings(machine, driver, {})}
    assert found["GPU"] == "NVIDIA GeForce RTX 3090, cuda, 24.0 GiB, 23.4 GiB available, compute capability 8.6"
    assert found["NVIDIA driver"] == "580.95.05"
    assert nvidia_driver(lambda _cmd: None) is None


@pytest.mark.parametrize(
    ("name", "capability", "cuda", "driver", "mark", "words"),
    [
        ("RTX 3090", 8.6, None, "580.95", "poor", ["without CUDA", "install torch"]),
        ("RTX 3090", 8.6, None, "550.54", "poor", ["without CUDA", "whl/cu126"]),
        ("Tesla P100-PCIE-16GB", None, None, "580.95", "poor", ["without CUDA", "whl/cu126"]),
        (
            "Tesla P100-PCIE-16GB",
            None,
            "13.0",
            "580.95",
            "bad",
            ["support only Turing and newer", "torch<2.15", "whl/cu126"],
        ),
        ("Tesla V100-SXM2-32GB", 7.0, "12.8", "580.95", "bad", ["support only Turing and newer", "whl/cu126"]),
        ("RTX 3090", 8.6, "13.0", "535.161", "bad", ["driver 580 or newer; installed: 535.161", "whl/cu126"]),
        ("NVIDIA B200", 10.0, "12.6", "580.95", "bad", ["too old to support", "install torch"]),
        ("Tesla V100-SXM2-32GB", 7.0, "12.6", "580.95", None, []),
        ("Tesla T4", 7.5, "13.2", "580.95", None, []),
        ("RTX 3090", 8.6, "12.6", None, None, []),
        ("NVIDIA B200", 10.0, "13.0", "590.1", None, []),
    ],
)
def test_a_torch_that_cannot_use_the_card_is_found(
    tmp_path: Path, name: str, capability: float | None, cuda: str | None, driver: str | None, mark: str | None, words: list[str]
) -> None:  # fmt: skip
    machine = with_torch(card(linux(tmp_path, P100), name, capability), cuda=cuda)
    found = faults_of("torch", package_findings(machine, driver, packages(tmp_path / "site", torch=("2.13.0", "any"))))
    assert [finding.mark for finding in found] == ([mark] if mark else [])
    text = " ".join(f"{finding.found} {finding.command}" for finding in found)
    assert all(word in text for word in words), text


def test_a_missing_and_an_old_package_are_named_with_the_command(tmp_path: Path) -> None:
    site = packages(tmp_path / "site", transformers=("4.40.0", "any"), torch=("2.13.0", "any"))
    found = list(package_findings(with_torch(linux(tmp_path, {})), None, site))
    (old,), (missing,) = faults_of("transformers", iter(found)), faults_of("gguf", iter(found))
    assert (old.found, old.mark) == ("4.40.0 is too old", "bad")
    assert "'transformers>=5.0'" in (old.command or "")
    assert missing.found == "not installed"
    assert "gguf>=" in (missing.command or "")


def test_bitsandbytes_is_needed_on_cuda_alone(tmp_path: Path) -> None:
    site = packages(tmp_path / "site")
    plain = with_torch(linux(tmp_path, {}))
    for machine, mark in ((plain, "poor"), (card(plain, "RTX 3090", 8.6), "bad")):
        assert [f.mark for f in faults_of("bitsandbytes", package_findings(machine, None, site))] == [mark]


def test_wheels_for_another_processor_are_found(tmp_path: Path) -> None:
    site = packages(tmp_path, numpy=("2.0.0", "macosx_11_0_x86_64"), tokenizers=("0.22", "macosx_11_0_universal2"))
    found = list(package_findings(with_torch(mac(M1), "2.14.1"), None, site))
    (wrong,) = [finding for finding in found if finding.what == "numpy" and "built for" in finding.found]
    assert wrong.mark == "bad"
    assert "--force-reinstall --no-deps numpy" in (wrong.command or "")
    assert not [finding for finding in found if finding.what == "tokenizers" and "built for" in finding.found]


@pytest.mark.parametrize(
    ("chip", "macos", "tag", "poor"),
    [
        ("Apple M5 Max", "26.2", "macosx_15_0_arm64", True),
        ("Apple M5 Max", "26.2", "macosx_26_0_arm64", False),
        ("Apple M5 Max", "15.6", "macosx_15_0_arm64", False),
        ("Apple M4", "26.2", "macosx_15_0_arm64", False),
    ],
)
def test_an_mlx_without_the_m5s_matrix_units_is_found(
    tmp_path: Path, chip: str, macos: str, tag: str, poor: bool
) -> None:
    site = packages(tmp_path, **{"mlx-metal": ("0.32.4", tag)})
    machine = replace(with_torch(mac(M1), "2.14.1"), chip=chip, macos=macos)
    found = list(package_findings(machine, None, site))
    assert any(finding.what == "mlx-metal" and tag in finding.found for finding in found)
    assert bool(faults_of("mlx-metal", iter(found))) is poor


def test_optional_packages_are_named(tmp_path: Path) -> None:
    (line,) = [f for f in package_findings(mac(M1), None, packages(tmp_path)) if f.what == "optional"]
    assert "modelscope" in line.found
    assert "matplotlib" in line.found
    assert "pytest" not in line.found


# self-tests


def test_every_engine_has_its_self_test() -> None:
    assert SELF_TESTS.keys() == ENGINES.keys()
    assert QUANTIZATIONS.keys() == {"4bit", "8bit"}


def compute_wrongly(device: str, precision: str) -> str:
    raise HardwareError("It computes wrongly.", found="off by 100%", fix="Update it.")


def fail_to_load(device: str, precision: str) -> str:
    raise OSError("libcuda.so: no such file")


def lack_a_package(device: str, precision: str) -> str:
    raise ModuleNotFoundError("No module named 'extra'", name="extra")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("test_doctor:compute_wrongly", {"found": "It computes wrongly. off by 100%", "fix": "Update it."}),
        ("test_doctor:fail_to_load", {"found": "OSError: libcuda.so: no such file"}),
        ("test_doctor:lack_a_package", {"found": "not installed: extra", "install": "pip install x"}),
        ("no_such_package.at_all:x", {"found": "not installed: no_such_package", "install": "pip install x"}),
    ],
)
def test_whatever_a_self_test_raises_becomes_text(target: str, words: dict[str, str]) -> None:
    facts = self_test.run_self_test(Entry(target, "pip install x"), "cpu", "fp32")
    assert facts.pop("good") is False
    assert {name: value for name, value in facts.items() if value is not None} == words
