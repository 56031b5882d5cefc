"""The notebooks run from top to bottom with papermill and a wheel of lorafit, as on their platforms.

They run in an environment of their own, which also sees the packages of this one; what they install stays there. The
model is a small random one, so that a notebook takes a minute. `--demo` differs only in --model_name.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from support import tiny
from support.stopped_runs import as_it_died

from lorafit import api
from lorafit.cli.app import main
from lorafit.config import TrainConfig, make_config, read_yaml, write_yaml
from lorafit.events import StepDone, read_events
from lorafit.run_folders.adapter import WEIGHTS
from lorafit.run_folders.directory import RunDir, saved_config
from lorafit.training.worker import train_in_process
from lorafit.transfer.bundle import bundle
from lorafit.transfer.fetch import fetch

pytestmark = pytest.mark.slow
pytest.importorskip("papermill")
pytest.importorskip("ipykernel")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment, which finds this environment's packages after its own."""
    folder = tmp_path_factory.mktemp("place") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin/python"


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    """Folders `colab`, `kaggle`, `paperspace` with the platform's files for a run of six steps, and `model`."""
    folder = tmp_path_factory.mktemp("sent")
    model = tiny.save_chat_model(folder / "model", demo_folder)
    config = TrainConfig(model_name=str(model), dataset_name="demo", max_samples=30, val_size=4, max_steps=6, lora_r=4,
                         effective_batch=4, save_steps=2, max_length=128)  # fmt: skip
    write_yaml(config, folder / "run.yaml")
    for place in ("colab", "kaggle", "paperspace"):
        api.cloud(place, folder / place, api.cloud_order(None, config, folder, str(model)))
    return folder


def execute(python: Path, notebook: Path, done: Path, **parameters: object) -> str:
    """Run `notebook` with `parameters` and return what its cells printed. Fails if a cell fails."""
    given = [word for name, value in parameters.items() for word in ("-y", json.dumps({name: value}))]
    command = [str(python), "-m", "papermill", str(notebook), str(done), "--no-progress-bar", *given]
    made = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""}, cwd=done.parent
    )
    assert made.returncode == 0, made.stderr[-3000:]
    cells = json.loads(done.read_text("utf-8"))["cells"]
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    return "".join("".join(output.get("text", [])) for output in outputs)


@pytest.mark.parametrize("place", ["colab", "paperspace"])
def test_a_notebook_trains_chats_and_packs_and_the_fetched_result_chats_here(
    python: Path, sent: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    for path in (sent / place).iterdir():
        shutil.copy(path, store)
    text = execute(python, sent / place / "lorafit.ipynb", tmp_path / "done.ipynb", STORE=str(store), PLACES=[])
    assert "is finished" in text
    assert list(python.parents[1].glob("lib/python*/site-packages/lorafit/cli/app.py")), "the wheel was not installed"
    home = tmp_path / "home"
    assert main(["fetch", str(store / "result.zip"), "--output_dir", str(home)]) == 0
    (run,) = home.iterdir()
    assert len([event for event in read_events(RunDir(run).events) if isinstance(event, StepDone)]) == 6
    capsys.readouterr()
    base = str(sent / "model")
    assert (
        main(["chat", "--lora_weights", str(run), "--base_model", base, "--prompt", "你好", "--max_new_tokens", "4"])
        == 0
    )


def test_on_kaggle_a_run_is_resumed_from_the_output_of_an_ended_session(
    python: Path, sent: Path, tmp_path: Path
) -> None:
    config = make_config(read_yaml(sent / "run.yaml"), "run.yaml").model_copy(
        update={"output_dir": str(tmp_path / "o")}
    )
    list(train_in_process(config))
    (whole,) = (RunDir(path) for path in (tmp_path / "o").iterdir())
    died = as_it_died(whole, tmp_path / "died", 4)
    given, store = tmp_path / "input", tmp_path / "working"
    given.mkdir()
    bundle(died, saved_config(died), given / "result.zip")
    shutil.copy(next((sent / "kaggle").glob("*.whl")), given)
    shutil.unpack_archive(sent / "kaggle/run.zip", given / "data")  # as Kaggle does with a zip in a dataset
    text = execute(
        python, sent / "kaggle/lorafit.ipynb", tmp_path / "done.ipynb", STORE=str(store), PLACES=[str(given)]
    )
    assert "is finished" in text
    assert [path.name for path in store.glob("llama-*")] == [], "the trained run is in result.zip alone"
    (fetched,) = fetch(store / "result.zip", tmp_path / "home")
    assert (fetched.run.final_model / WEIGHTS).read_bytes() == (whole.final_model / WEIGHTS).read_bytes()
