"""Interrupted runs of several processes: real processes from the command line, with a tiny model.

If a process is lost, the others report it and exit. Any number of processes can resume from the last checkpoint.
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
from support.commands import train_flags

from lorafit.config import TrainConfig, read_yaml
from lorafit.events import Finished, Restarted, Saved, StepDone, Stopped, read_events
from lorafit.planner.plan import Plan
from lorafit.run_folders.directory import RunDir
from lorafit.training.preview import preview_run

STEPS = 60  # long enough to interrupt the run in the middle
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "lorafit", "train"]
TRAIN = ["-m", "lorafit", "train"]
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without distributed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    return tiny.save_chat_model(tmp_path_factory.mktemp("tiny"), demo_folder)


def flags(model: Path, output: Path, **changes: object) -> list[str]:
    """Return the flags of a run in the folder `output`; `changes` replace settings."""
    return train_flags(model, output, **{"max_steps": STEPS, "save_steps": 1000, "eval_steps": 30, **changes})


def start(command: list[str], arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run_to_the_end(command: list[str], arguments: list[str]) -> str:
    """Run the command, which must succeed, and return its output."""
    output, _none = (process := start(command, arguments)).communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def the_run(output: Path) -> Path:
    """Return the only run folder in `output`."""
    (path,) = output.iterdir()
    return path


def wait_for_step(output: Path, step: int) -> None:
    """Wait until the run in `output` has finished `step`."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        paths = list(output.glob("*/events.jsonl"))
        if paths and any(isinstance(e, StepDone) and e.step >= step for e in read_events(paths[0])):
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} never came")


def second_of(process: subprocess.Popen[str]) -> psutil.Process:
    """Return the child process of `process` that has rank 1."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # another child process has just exited
            if child.environ().get("RANK") == "1":
                return child
    raise AssertionError("there is no second process")


def kill_second(process: subprocess.Popen[str], output: Path, step: int) -> str:
    """Kill the process of rank 1 after `step`, and return all output of `process`."""
    wait_for_step(output, step)
    second_of(process).kill()
    return process.communicate(timeout=120)[0]


def b_distance(output: Path, wanted: Path) -> float:
    """Return the distance between the trained lora_B of two runs, relative to the norm of the `wanted` run's."""
    files = [the_run(o) / "final_model" / "adapter_model.safetensors" for o in (output, wanted)]
    found, true = (load_file(file) for file in files)
    names = sorted(name for name in true if "lora_B" in name)
    found_b, wanted_b = (torch.cat([seen[name].flatten() for name in names]) for seen in (found, true))
    return float((found_b - wanted_b).norm() / wanted_b.norm())


@pytest.fixture(scope="module")
def uninterrupted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that one process trained without interruption."""
    output = tmp_path_factory.mktemp("uninterrupted")
    run_to_the_end(TRAIN, ["--no_supervisor", *flags(model, output)])
    return output


def test_a_lost_process_ends_a_run_with_an_error_and_one_process_resumes_it(
    model: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    process = start(TRAIN, ["--no_supervisor", "--processes", "2", *flags(model, tmp_path)])
    output = kill_second(process, tmp_path, 3)
    assert process.returncode == 2, output
    assert "Process 1 (of 0 to 1) exited or does not respond, so the others stop." in output
    assert "SIGKILL" in output
    assert "--resume" in output
    events = read_events(the_run(tmp_path) / "events.jsonl")
    done = max(e.step for e in events if isinstance(e, StepDone))
    assert [e.step for e in events if isinstance(e, Saved)] == [done]
    again = ["--no_supervisor", "--resume", "--output_dir", str(tmp_path), "--processes", "1"]
    assert f"step {done + 1}/{STEPS}" in run_to_the_end(TRAIN, again)
    assert b_distance(tmp_path, uninterrupted) < 1e-3


@pytest.mark.slow
def test_a_run_begun_in_one_process_is_resumed_by_two_and_they_stop_together(
    model: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    alone = start(TRAIN, ["--no_supervisor", *flags(model, tmp_path)])
    wait_for_step(tmp_path, 2)
    alone.send_signal(signal.SIGTERM)
    alone.communicate(timeout=120)
    both = start(TORCHRUN, ["--resume", "--output_dir", str(tmp_path)])
    wait_for_step(tmp_path, 5)
    second_of(both).send_signal(signal.SIGTERM)  # rank 1 alone gets the signal, and both must stop after the same step
    both.communicate(timeout=120)
    events = read_events(the_run(tmp_path) / "events.jsonl")
    stopped = [e for e in events if isinstance(e, Stopped)]
    assert len(stopped) == 1 or stopped[-1].step > stopped[0].step
    assert stopped[-1].step == [e for e in events if isinstance(e, Saved)][-1].step >= 5
    run_to_the_end(TRAIN, ["--resume", "--output_dir", str(tmp_path), "--processes", "2"])
    assert b_distance(tmp_path, uninterrupted) < 1e-3


@pytest.mark.slow
def test_a_lost_process_of_torchrun_ends_all_and_torchrun_resumes_the_run(
    model: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    output = kill_second(start(TORCHRUN, flags(model, tmp_path, save_steps=2)), tmp_path, 5)
    assert "Process 1 (of 0 to 1) exited or does not respond, so the others stop." in output
    run_to_the_end(TORCHRUN, ["--resume", "--output_dir", str(tmp_path)])
    assert b_distance(tmp_path, uninterrupted) < 1e-3


@pytest.mark.slow
def test_a_lost_process_is_replaced_by_the_supervisor(model: Path, uninterrupted: Path, tmp_path: Path) -> None:
    process = start(TRAIN, ["--processes", "2", *flags(model, tmp_path)])
    output = kill_second(process, tmp_path, 3)
    assert process.returncode == 0, output
    events = read_events(the_run(tmp_path) / "events.jsonl")
    assert [e.cause for e in events if isinstance(e, Restarted)] == ["lost"]
    assert b_distance(tmp_path, uninterrupted) < 1e-3


@pytest.mark.slow
def test_when_the_first_process_is_killed_the_others_end_too(model: Path, tmp_path: Path) -> None:
    process = start(TRAIN, ["--no_supervisor", "--processes", "2", *flags(model, tmp_path, max_steps=2000)])
    wait_for_step(tmp_path, 2)
    second = second_of(process)
    process.kill()
    process.communicate()
    second.wait(60)


@pytest.mark.slow
def test_a_sharded_run_from_the_command_line_learns_the_same_and_is_planned_alike(
    model: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    output = run_to_the_end(TRAIN, ["--processes", "2", "--shard", "on", *flags(model, tmp_path)])
    assert "each process holds a part of the base model" in output
    assert b_distance(tmp_path, uninterrupted) < 1e-3
    run = RunDir(the_run(tmp_path))
    preview, used = preview_run(TrainConfig(**read_yaml(run.config)), None).plan, Plan.load(run.plan)
    assert (preview.processes, preview.shard, preview.token_budget, preview.recompute, preview.predicted_peak_bytes) == (
        used.processes, used.shard, used.token_budget, used.recompute, used.predicted_peak_bytes
    )  # fmt: skip
    assert preview.available_bytes == pytest.approx(used.available_bytes, rel=0.5)  # free memory varies


@pytest.mark.slow
def test_an_error_of_every_process_is_reported_once(model: Path, tmp_path: Path) -> None:
    process = start(TORCHRUN, flags(model, tmp_path, lora_targets="nothing"))
    output = process.communicate(timeout=200)[0]
    assert process.returncode != 0
    assert output.count("lora_targets names layers") == 1
    assert not any(isinstance(e, Finished) for path in tmp_path.glob("*/events.jsonl") for e in read_events(path))
