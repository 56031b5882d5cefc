"""A run that is killed at any moment and resumed ends with the same bytes as an undisturbed run.

The tests start real processes through the command line, with a tiny model and the demo's tokenizer. One slow test uses
the demo model itself.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support import tiny
from support.commands import run_folder, start_training, train_flags, wait_for_step
from support.paths import SUPPORT

from lorafit.cli.app import main
from lorafit.events import Finished, Saved, StepDone, Stopped, read_events
from lorafit.ipc.signals import ONE_REQUEST_SECONDS

STEPS = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    return tiny.save_chat_model(tmp_path_factory.mktemp("tiny"), demo_folder)


def flags(model: Path, output: Path, **changes: object) -> list[str]:
    """Return the flags of a run in the folder `output`; `changes` replace settings."""
    return train_flags(model, output, **{"max_steps": STEPS, "save_steps": 2, "eval_steps": 3, **changes})


def run(script: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *script, *words], capture_output=True, text=True, timeout=300)


def train(*words: str) -> None:
    done = run(["-m", "lorafit", "train"], *words)
    assert done.returncode == 0, done.stderr + done.stdout


def adapter_bytes(output: Path) -> bytes:
    return (run_folder(output) / "final_model" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that nothing interrupts."""
    output = tmp_path_factory.mktemp("undisturbed")
    train(*flags(model, output))
    return output


@pytest.fixture(scope="module")
def killed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that was killed after the update of step 7. Tests copy it before they resume."""
    output = tmp_path_factory.mktemp("killed")
    done = run([str(SUPPORT / "killed_training.py")], "update", "7", *flags(model, output))
    assert done.returncode == -signal.SIGKILL, done.stderr
    return output


def check_events(output: Path, undisturbed: Path) -> None:
    """Assert that each step is logged once with the undisturbed run's loss, and that no unfinished folder is left."""
    events, expected = (read_events(run_folder(o) / "events.jsonl") for o in (output, undisturbed))
    losses, expected_losses = ([(e.step, e.loss) for e in es if isinstance(e, StepDone)] for es in (events, expected))
    assert losses == expected_losses
    finished, expected_finished = (next(e for e in es if isinstance(e, Finished)) for es in (events, expected))
    assert finished.valid_loss_before == expected_finished.valid_loss_before
    assert finished.best_step == expected_finished.best_step
    assert not [p for p in run_folder(output).rglob(".*")]


@pytest.mark.parametrize(
    ("moment", "count"),
    [
        ("step", 1),
        ("saving", 2),
        ("finishing", 1),
        *(
            pytest.param(*m, marks=pytest.mark.slow)
            for m in (("opening", 1), ("update", 5), ("sealing", 3), ("pruning", 2))
        ),
    ],
)
def test_killed_at_a_chosen_moment_it_ends_with_the_same_bytes(
    model: Path, undisturbed: Path, tmp_path: Path, moment: str, count: int
) -> None:
    done = run([str(SUPPORT / "killed_training.py")], moment, str(count), *flags(model, tmp_path))
    assert done.returncode == -signal.SIGKILL, done.stderr
    train("--resume", "--output_dir", str(tmp_path))
    assert adapter_bytes(tmp_path) == adapter_bytes(undisturbed)
    check_events(tmp_path, undisturbed)


@contextmanager
def worker_suspended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Suspend the worker of `process` within the block."""
    children = psutil.Process(process.pid).children()
    (worker,) = (p for p in children if p.status() != psutil.STATUS_ZOMBIE and "lorafit.training.child" in p.cmdline())
    worker.suspend()
    yield
    worker.resume()


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ([signal.SIGINT], 130),
        ([signal.SIGINT, signal.SIGINT], 130),  # as `timeout -s INT` delivers it
        ([signal.SIGHUP, signal.SIGINT, signal.SIGTERM], 129),
        pytest.param([signal.SIGTERM], 143, marks=pytest.mark.slow),
    ],
)
def test_a_signal_finishes_the_step_saves_and_prints_how_to_resume(
    model: Path, undisturbed: Path, tmp_path: Path, numbers: list[signal.Signals], code: int
) -> None:
    process = start_training(flags(model, tmp_path, save_steps=1000))
    wait_for_step(tmp_path, 2)
    with worker_suspended(process):  # else the run of two seconds may end before the supervisor reads the first events
        time.sleep(1)
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.3)
    output, _none = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert "resume" in output
    events = read_events(run_folder(tmp_path) / "events.jsonl")
    stopped = next(e for e in events if isinstance(e, Stopped))
    assert any(isinstance(e, Saved) and e.step == stopped.step for e in events)
    train("--resume", "--output_dir", str(tmp_path))
    assert adapter_bytes(tmp_path) == adapter_bytes(undisturbed)


def test_a_third_request_to_stop_ends_the_program_at_once(model: Path, tmp_path: Path) -> None:
    process = start_training(flags(model, tmp_path, save_steps=1000, max_steps=5000))
    wait_for_step(tmp_path, 2)
    process.send_signal(signal.SIGSTOP)  # so that no signal is obeyed before the last one is sent
    program = psutil.Process(process.pid)
    children = program.children()
    for child in children:
        child.suspend()
    program.resume()
    for _request in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(ONE_REQUEST_SECONDS + 1)
    output, _none = process.communicate(timeout=60)
    assert process.returncode == 130, output
    psutil.wait_procs(children, timeout=10)
    assert not any(child.is_running() for child in children)


def test_when_the_output_pipe_closes_the_step_is_finished_and_saved(model: Path, tmp_path: Path) -> None:
    process = start_training(flags(model, tmp_path, save_steps=1000, max_steps=2000))
    wait_for_step(tmp_path, 2)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    events = read_events(run_folder(tmp_path) / "events.jsonl")
    assert isinstance(events[-1], Stopped)
    assert any(isinstance(e, Saved) and e.step == events[-1].step for e in events)


def test_training_started_with_nohup_outlives_its_terminal(model: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "lorafit", "train", *flags(model, tmp_path)]
    with (tmp_path.parent / "nohup.out").open("w") as out:
        process = subprocess.Popen(["nohup", *words], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        wait_for_step(tmp_path, 2)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 0
    assert any(isinstance(e, Finished) for e in read_events(run_folder(tmp_path) / "events.jsonl"))


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_it_used(
    killed: Path, undisturbed: Path, tmp_path: Path
) -> None:
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    newest = sorted((run_folder(tmp_path) / "checkpoints").iterdir())[-1] / "optimizer.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(bytes(content))
    done = run(["-m", "lorafit", "train"], "--resume", "--output_dir", str(tmp_path), "--lang", "en")
    assert done.returncode == 0, done.stderr
    assert "step-000006 is damaged" in done.stdout
    assert adapter_bytes(tmp_path) == adapter_bytes(undisturbed)


def test_a_run_that_another_process_writes_is_refused(model: Path, tmp_path: Path) -> None:
    process = start_training(flags(model, tmp_path, max_steps=2000))
    try:
        wait_for_step(tmp_path, 1)
        second = run(["-m", "lorafit", "train"], "--resume", "--output_dir", str(tmp_path), "--lang", "en")
        assert second.returncode == 2
        assert str(process.pid) in second.stderr
    finally:
        process.kill()
        process.communicate()


def test_a_resume_may_change_how_a_run_is_computed_but_not_what_it_learns(
    killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    again = ["--resume", "--output_dir", str(tmp_path), "--lang", "en"]
    for flag, value in (("--lora_r", "8"), ("--seed", "7"), ("--max_length", "128"), ("--dataset_split", "train[:30]")):
        code = main(["train", "--no_supervisor", *again, flag, value])
        printed = capsys.readouterr()
        assert code == 2, printed.out
        assert flag.strip("-") in printed.err
        assert value in printed.err
    train(*again, "--token_budget", "200", "--save_steps", "1", "--recompute", "1", "--batch_size", "2")
    assert json.loads((run_folder(tmp_path) / "plan.json").read_text())["token_budget"] == 200


def test_a_finished_run_is_not_resumed(undisturbed: Path) -> None:
    done = run(["-m", "lorafit", "train"], "--resume", "--output_dir", str(undisturbed), "--lang", "en")
    assert done.returncode == 2
    assert "finished" in done.stderr
    assert "--init_adapter" in done.stderr


@pytest.mark.slow
def test_killed_five_times_at_random_moments_the_demo_ends_with_the_same_bytes(
    demo_folder: Path, tmp_path: Path
) -> None:
    changes = {"max_steps": 6, "save_steps": 2, "max_length": 64}
    train(*flags(demo_folder, tmp_path / "whole", **changes))
    rng = random.Random(20261124)
    words = flags(demo_folder, tmp_path / "killed", **changes)
    for _i in range(5):
        process = start_training(words)
        time.sleep(rng.uniform(8, 25))
        process.kill()
        process.communicate()
        if (tmp_path / "killed").is_dir():
            words = ["--resume", "--output_dir", str(tmp_path / "killed")]
    done = run(["-m", "lorafit", "train"], *words)
    assert done.returncode == 0 or "finished" in done.stderr, done.stderr
    assert adapter_bytes(tmp_path / "killed") == adapter_bytes(tmp_path / "whole")
