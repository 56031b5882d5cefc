"""What becomes of a run of several processes that is broken off? Real ones, by the command line, a tiny model.

A process is lost: the others say so and end, and what is saved goes on in any number of them.
"""

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from support import tiny

from lorafit.config import TrainConfig, read_yaml
from lorafit.events import Finished, Restarted, Saved, StepDone, Stopped, read_events
from lorafit.planner.plan import Plan
from lorafit.run_folders.directory import RunDir
from lorafit.training.preview import preview_run

STEPS = 60  # enough to be caught in the middle
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "lorafit", "train"]
TRAIN = ["-m", "lorafit", "train"]
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without distributed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    return tiny.save_chat_model(tmp_path_factory.mktemp("tiny"), demo_folder)


def flags(model: Path, output: Path, **changes: object) -> list[str]:
    settings: dict[str, object] = {
        "model_name": model, "dataset_name": "demo", "max_samples": 40, "max_length": 96, "max_steps": STEPS,
        "effective_batch": 4, "save_steps": 1000, "eval_steps": 30, "lora_r": 4, "lora_dropout": 0.1,
        "output_dir": output, "lang": "en",
    }  # fmt: skip
    return [word for name, value in {**settings, **changes}.items() for word in (f"--{name}", str(value))]


def started(command: list[str], words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(command: list[str], words: list[str]) -> str:
    output, _none = (process := started(command, words)).communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def the_run(output: Path) -> Path:
    (path,) = output.iterdir()
    return path


def wait_for_step(output: Path, step: int) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        paths = list(output.glob("*/events.jsonl"))
        if paths and any(isinstance(e, StepDone) and e.step >= step for e in read_events(paths[0])):
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} never came")


def second_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The process of rank 1 below `process`."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # a helper that has just ended
            if child.environ().get("RANK") == "1":
                return child
    raise AssertionError("there is no second process")


def kill_second(process: subprocess.Popen[str], output: Path, step: int) -> str:
    """What is said when the second process is killed after `step`."""
    wait_for_step(output, step)
    second_of(process).kill()
    return process.communicate(timeout=120)[0]


def off(output: Path, wanted: Path) -> float:
    """How far the trained B are apart, by norm."""
    files = [the_run(o) / "final_model" / "adapter_model.safetensors" for o in (output, wanted)]
    found, true = (load_file(file) for file in files)
    names = sorted(name for name in true if "lora_B" in name)
    found_b, wanted_b = (torch.cat([seen[name].flatten() for name in names]) for seen in (found, true))
    return float((found_b - wanted_b).norm() / wanted_b.norm())


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    finished(TRAIN, ["--no_supervisor", *flags(model, output)])
    return output


def test_a_lost_process_ends_a_run_with_words_and_what_it_did_goes_on_in_one(
    model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    process = started(TRAIN, ["--no_supervisor", "--processes", "2", *flags(model, tmp_path)])
    said = kill_second(process, tmp_path, 3)
    assert process.returncode == 2, said
    assert "Process 1 of 0 to 1 is lost" in said
    assert "SIGKILL" in said
    assert "--resume" in said
    events = read_events(the_run(tmp_path) / "events.jsonl")
    done = max(e.step for e in events if isinstance(e, StepDone))
    assert [e.step for e in events if isinstance(e, Saved)] == [done]
    again = ["--no_supervisor", "--resume", "--output_dir", str(tmp_path), "--processes", "1"]
    assert f"step {done + 1}/{STEPS}" in finished(TRAIN, again)
    assert off(tmp_path, undisturbed) < 1e-3


@pytest.mark.slow
def test_a_run_begun_in_one_process_goes_on_in_two_and_they_stop_together(
    model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    alone = started(TRAIN, ["--no_supervisor", *flags(model, tmp_path)])
    wait_for_step(tmp_path, 2)
    alone.send_signal(signal.SIGTERM)
    alone.communicate(timeout=120)
    both = started(TORCHRUN, ["--resume", "--output_dir", str(tmp_path)])
    wait_for_step(tmp_path, 5)
    second_of(both).send_signal(signal.SIGTERM)  # it alone hears it, and both must stop after the same step
    both.communicate(timeout=120)
    events = read_events(the_run(tmp_path) / "events.jsonl")
    stopped = [e for e in events if isinstance(e, Stopped)]
    assert len(stopped) == 1 or stopped[-1].step > stopped[0].step
    assert stopped[-1].step == [e for e in events if isinstance(e, Saved)][-1].step >= 5
    finished(TRAIN, ["--resume", "--output_dir", str(tmp_path), "--processes", "2"])
    assert off(tmp_path, undisturbed) < 1e-3


@pytest.mark.slow
def test_a_process_of_torchruns_that_is_lost_ends_all_and_what_they_did_goes_on(
    model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    said = kill_second(started(TORCHRUN, flags(model, tmp_path, save_steps=2)), tmp_path, 5)
    assert "Process 1 of 0 to 1 is lost" in said
    finished(TORCHRUN, ["--resume", "--output_dir", str(tmp_path)])
    assert off(tmp_path, undisturbed) < 1e-3


@pytest.mark.slow
def test_a_lost_process_is_replaced_by_the_supervisor(model: Path, undisturbed: Path, tmp_path: Path) -> None:
    process = started(TRAIN, ["--processes", "2", *flags(model, tmp_path)])
    said = kill_second(process, tmp_path, 3)
    assert process.returncode == 0, said
    events = read_events(the_run(tmp_path) / "events.jsonl")
    assert [e.cause for e in events if isinstance(e, Restarted)] == ["lost"]
    assert off(tmp_path, undisturbed) < 1e-3


@pytest.mark.slow
def test_when_the_first_process_is_killed_the_others_end_too(model: Path, tmp_path: Path) -> None:
    process = started(TRAIN, ["--no_supervisor", "--processes", "2", *flags(model, tmp_path, max_steps=2000)])
    wait_for_step(tmp_path, 2)
    second = second_of(process)
    process.kill()
    process.communicate()
    second.wait(60)


@pytest.mark.slow
def test_shards_learn_what_the_whole_learns_by_the_command_line_too(
    model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    said = finished(TRAIN, ["--processes", "2", "--shard", "on", *flags(model, tmp_path)])
    assert "each process holds its share of the base" in said
    assert off(tmp_path, undisturbed) < 1e-3
    run = RunDir(the_run(tmp_path))
    told, done = preview_run(TrainConfig(**read_yaml(run.config)), None).plan, Plan.load(run.plan)
    assert (told.processes, told.shard, told.token_budget, told.recompute, told.predicted_peak_bytes) == (
        done.processes, done.shard, done.token_budget, done.recompute, done.predicted_peak_bytes
    )  # fmt: skip
    assert told.available_bytes == pytest.approx(done.available_bytes, rel=0.5)  # free memory comes and goes


@pytest.mark.slow
def test_what_every_process_would_say_is_said_once(model: Path, tmp_path: Path) -> None:
    process = started(TORCHRUN, flags(model, tmp_path, lora_targets="nothing"))
    said = process.communicate(timeout=200)[0]
    assert process.returncode != 0
    assert said.count("lora_targets names layers") == 1
    assert not any(isinstance(e, Finished) for path in tmp_path.glob("*/events.jsonl") for e in read_events(path))
