"""The files for each platform are valid, complete and free of secrets, and their scripts work. Nothing is sent."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorafit import api
from lorafit.cli.app import main
from lorafit.config import DEMO_PRESET, TrainConfig
from lorafit.errors import ConfigError
from lorafit.hardware.catalogue.clouds import INSTANCES
from lorafit.registry import CLOUDS, load
from lorafit.transfer.cloud.base import Platform, Quote
from lorafit.transfer.cloud.notebook import HELPERS
from lorafit.transfer.cloud.prices import PRICES, Price
from lorafit.transfer.cloud.sagemaker import best_quote, max_runtime_seconds
from lorafit.transfer.cloud.wheel import build_wheel

Output = pytest.CaptureFixture[str]
SECRET = "hf_" + "a1b2c3d4" * 4
NOTEBOOKS = ("colab", "kaggle", "paperspace")
# Stands in for python3 and torchrun on the platform: logs its arguments; with SLOW, "trains" until a signal.
STUB = """\
#!/usr/bin/env bash
echo "$@" >> "$LOG"
if [[ "$*" == *"lorafit train"* || "$*" == *"lorafit fetch"* ]]; then
    while [[ $# -gt 0 && $1 != --output_dir ]]; do shift; done
    mkdir -p "$2/a-run" && touch "$2/a-run/config.yaml"
    if [[ -n "${SLOW:-}" ]]; then
        trap 'echo saved >> "$LOG"; exit 143' TERM
        touch "$LOG.training"
        for i in {1..200}; do sleep 0.05; done
    fi
fi
if [[ "$*" == *metadata* ]]; then echo torch==2.8.0; fi
"""


# Stands in for `python -m pip wheel ... -w FOLDER ...`.
PIP_STUB = """\
import sys
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("-w") + 1])
folder.mkdir(parents=True)
(folder / "lorafit-0.1.0-py3-none-any.whl").write_text("a wheel")
"""


@pytest.fixture(scope="module")
def pip_stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH whose `pip` writes a wheel at once; a real build takes seconds."""
    folder = tmp_path_factory.mktemp("pip_stub")
    (folder / "pip").mkdir()
    (folder / "pip/__init__.py").touch()
    (folder / "pip/__main__.py").write_text(PIP_STUB)
    return folder


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory, pip_stub: Path) -> Path:
    """A folder with the files that each platform gets for a run of the demo."""
    folder = tmp_path_factory.mktemp("sent")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", SECRET)
        patch.setenv("PYTHONPATH", str(pip_stub))
        config = TrainConfig.model_validate({**DEMO_PRESET, "hf_endpoint": "https://me:pass@mirror.example"})
        for place in CLOUDS:
            api.cloud(place, folder / place, api.cloud_order(None, config, Path("output"), None))
    return folder


def test_the_platforms_and_their_machines_are_known() -> None:
    assert list(CLOUDS) == ["colab", "kaggle", "paperspace", "sagemaker", "skypilot"]
    machines = {instance.name for instance in INSTANCES}
    for entry in CLOUDS.values():
        target: Platform = load(entry)
        assert set(target.machines) <= machines
    assert set(PRICES) <= machines
    assert all(price.source and price.read[:3] == "202" for price in PRICES.values())


def test_every_platform_gets_the_same_bundle(sent: Path) -> None:
    bundles = {(sent / place / "run.zip").read_bytes() for place in CLOUDS}
    assert len(bundles) == 1


def test_no_secret_and_nothing_of_this_machine_is_in_any_file(sent: Path) -> None:
    for path in sent.rglob("*"):
        if path.is_file() and path.suffix != ".zip":
            text = path.read_text("utf-8")
            for secret in (SECRET, "mirror.example", str(Path.home()) + "/", str(sent)):
                assert secret not in text, path


@pytest.mark.parametrize("place", NOTEBOOKS)
def test_a_notebook_is_valid_and_its_code_compiles(sent: Path, place: str) -> None:
    notebook = json.loads((sent / place / "lorafit.ipynb").read_text("utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), place, "exec")
    tags = [cell["metadata"].get("tags") for cell in notebook["cells"]]
    assert tags.count(["parameters"]) == 1
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(notebook)


def test_a_notebook_keeps_the_torch_of_the_platform(sent: Path) -> None:
    for place in NOTEBOOKS:
        text = (sent / place / "lorafit.ipynb").read_text("utf-8")
        assert "torch=={importlib.metadata.version('torch')}" in text
        assert "pip install torch" not in text


def test_a_cell_stops_its_command_in_time_and_lets_it_save(tmp_path: Path, capsys: Output) -> None:
    names: dict[str, Any] = {"STORE": str(tmp_path), "NAME": "n", "PLACES": []}
    exec(HELPERS, names)
    code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('saved'); exit(130)"
    names["run"](sys.executable, "-c", code, hours=1 / 3600, good=(0, 130))
    assert capsys.readouterr().out == "saved\n"
    with pytest.raises(RuntimeError, match="code 3"):
        names["run"](sys.executable, "-c", "exit(3)")


def test_the_training_job_is_valid_for_sagemaker(sent: Path) -> None:
    text = (sent / "sagemaker/training_job.json").read_text("utf-8")
    for placeholder, value in (("BUCKET", "b"), ("ROLE", "arn:aws:iam::123456789012:role/r"), ("REGION", "eu-west-1")):
        text = text.replace(placeholder, value)  # as send.sh does
    job = json.loads(text)
    assert job["AlgorithmSpecification"]["TrainingImage"].count("eu-west-1") == 1
    assert job["CheckpointConfig"]["LocalPath"] == "/opt/ml/checkpoints"
    assert job["EnableManagedSpotTraining"]
    assert job["StoppingCondition"]["MaxWaitTimeInSeconds"] >= job["StoppingCondition"]["MaxRuntimeInSeconds"]
    assert len(job["TrainingJobName"]) <= 63
    loaders = pytest.importorskip("botocore.loaders")
    from botocore.model import ServiceModel
    from botocore.validate import ParamValidator

    model = ServiceModel(loaders.Loader().load_service_model("sagemaker", "service-2"), "sagemaker")
    shape = model.operation_model("CreateTrainingJob").input_shape
    report = ParamValidator().validate(job, shape)
    assert not report.has_errors(), report.generate_report()
    assert ParamValidator().validate({**job, "RoleArn": 3}, shape).has_errors()


def test_the_task_is_valid_for_skypilot(sent: Path) -> None:
    task = yaml.safe_load((sent / "skypilot/task.yaml").read_text("utf-8"))
    assert task["resources"]["use_spot"]
    assert task["file_mounts"]["/checkpoints"]["mode"] == "MOUNT_CACHED"
    python = os.environ.get("SKY_PYTHON")  # a Python with skypilot, which is too large for this environment
    if python is None:
        pytest.skip("SKY_PYTHON names no Python with skypilot")
    code = "import sky, sys; t = sky.Task.from_yaml(sys.argv[1]); print(t.num_nodes, len(t.resources))"
    done = subprocess.run([python, "-c", code, "task.yaml"], cwd=sent / "skypilot", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "1"


def other_machine(folder: Path, **environ: str) -> dict[str, str]:
    """Return an environment whose `python3` and `torchrun` are the stub."""
    (folder / "bin").mkdir()
    for name in ("python3", "torchrun"):
        (folder / "bin" / name).write_text(STUB)
        (folder / "bin" / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "LOG": str(folder / "log"), **environ}


def start_sagemaker_script(sent: Path, folder: Path, **environ: str) -> subprocess.Popen[bytes]:
    places = {"SM_CHANNEL_CODE": str(sent / "sagemaker"), "CHECKPOINTS": str(folder / "checkpoints"),
              "SM_MODEL_DIR": str(folder / "model")}  # fmt: skip
    return subprocess.Popen(["bash", str(sent / "sagemaker/train.sh")], env=other_machine(folder, **places, **environ))


def test_the_sagemaker_script_installs_trains_and_packs(sent: Path, tmp_path: Path) -> None:
    assert start_sagemaker_script(sent, tmp_path).wait(20) == 0
    asked = (tmp_path / "log").read_text().splitlines()
    assert [next(word for word in ("metadata", "pip", "train", "bundle") if word in line) for line in asked] == [
        "metadata", "pip", "train", "bundle",
    ]  # fmt: skip
    assert str(sent / "sagemaker/run.zip") in asked[2]
    assert asked[3].endswith(f"-o {tmp_path}/model/result.zip")


def test_the_sagemaker_script_forwards_the_spot_instances_signal_and_waits_for_the_checkpoint(
    sent: Path, tmp_path: Path
) -> None:
    job = start_sagemaker_script(sent, tmp_path, SLOW="1")
    until = time.monotonic() + 20
    while not (tmp_path / "log.training").exists() and time.monotonic() < until:
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == 143
    assert (tmp_path / "log").read_text().splitlines()[-1] == "saved"
    assert not (tmp_path / "model/result.zip").exists()


@pytest.mark.parametrize(
    ("nodes", "gpus", "starts"), [(1, 1, "-m lorafit train"), (2, 4, "--nnodes 2 --nproc_per_node 4")]
)
def test_the_skypilot_script_starts_one_process_or_torchrun(
    sent: Path, tmp_path: Path, nodes: int, gpus: int, starts: str
) -> None:
    task = yaml.safe_load((sent / "skypilot/task.yaml").read_text("utf-8"))
    script = task["run"].replace("/checkpoints", str(tmp_path / "checkpoints"))
    environ = {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": str(nodes), "SKYPILOT_NUM_GPUS_PER_NODE": str(gpus),
               "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "FLAGS": "--lora_r 8"}  # fmt: skip
    done = subprocess.run(["bash", "-c", script], env=other_machine(tmp_path, **environ), timeout=20)
    assert done.returncode == 0
    asked = (tmp_path / "log").read_text().splitlines()
    assert asked[0].startswith("-m lorafit fetch run.zip")
    assert asked[1].startswith(starts)
    assert asked[1].endswith("--lora_r 8")
    assert ("--master_addr 10.0.0.1" in asked[1]) == (nodes > 1)
    assert "lorafit bundle" in asked[2]


@pytest.mark.parametrize("script", ["sagemaker/train.sh", "sagemaker/send.sh"])
def test_scripts_are_valid_and_executable(sent: Path, script: str) -> None:
    subprocess.run(["bash", "-n", str(sent / script)], check=True)
    assert (sent / script).stat().st_mode & stat.S_IXUSR


def test_the_cheapest_machine_that_fits_is_chosen_with_enough_time() -> None:
    facts: dict[str, Any] = {"gpu": "X", "details": "", "price": Price(1.0, "?", "2026-01")}
    slow = Quote("slow", fits=True, seconds=7200, low=7000, high=9000, **facts)
    fast = Quote("fast", fits=True, seconds=3600, low=3000, high=4000, **facts)
    small = Quote("small", fits=False, seconds=60, low=50, high=70, **facts)
    assert best_quote([slow, fast, small]) == fast
    assert best_quote([small]) is None
    assert max_runtime_seconds(fast) == 3 * 4000 + 3600
    assert fast.dollars == 1.0


def test_a_local_base_model_must_be_given_its_name_on_the_platform(tmp_path: Path, demo_folder: Path) -> None:
    config = TrainConfig(model_name=str(demo_folder), dataset_name="demo")
    with pytest.raises(ConfigError, match="not part of the bundle"):
        api.cloud("colab", tmp_path / "out", api.cloud_order(None, config, tmp_path, None))
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_files_the_costs_and_the_next_steps(
    pip_stub: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(pip_stub))
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["cloud", "kaggle", "--demo", "-o", str(tmp_path / "k")]) == 0
    text = capsys.readouterr().out
    for part in ("run.zip", "kaggle-t4x2", "fp16", "free", "CUDA 12.6", "Save & Run All", "lorafit fetch result.zip"):
        assert part in text, part
    assert main(["cloud", "colap", "--demo"]) == 2
    assert "colab" in capsys.readouterr().err


@pytest.mark.slow
def test_the_wheel_of_lorafit_is_the_same_bytes_each_time_and_complete(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert build_wheel(tmp_path / name).endswith("-py3-none-any.whl")
    (one,), (other,) = (list((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert one.read_bytes() == other.read_bytes()
    code = "import lorafit.cli.app, sys; assert sys.argv[1] in lorafit.__file__; lorafit.cli.app.main(['--version'])"
    environ = {**os.environ, "PYTHONPATH": str(one)}
    done = subprocess.run([sys.executable, "-c", code, str(one)], cwd=tmp_path, env=environ, capture_output=True)
    assert done.returncode == 0, done.stderr
