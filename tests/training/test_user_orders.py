"""A user pauses, continues and stops a running training with `lorafit runs`, with and without a supervisor.

The tests start real processes with a tiny model and the demo's tokenizer.
"""

import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import tiny
from support.commands import run_folder, start_training, train_flags, wait_for_step

from lorafit.cli.app import main
from lorafit.events import Continued, Event, Finished, Moved, Paused, Saved, StepDone, Stopped, read_events
from lorafit.run_folders.adapter import read_adapter
from lorafit.run_folders.directory import RunDir, info_of

STEPS = 60  # the run must outlast the time until an order is read


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    return tiny.save_chat_model(tmp_path_factory.mktemp("tiny"), demo_folder)


def flags(model: Path, output: Path) -> list[str]:
    return train_flags(model, output, max_steps=STEPS, save_steps=1000, eval_steps=20)


def events_in(output: Path) -> list[Event]:
    return read_events(run_folder(output) / "events.jsonl")


def losses(output: Path) -> list[tuple[int, float]]:
    return [(event.step, event.loss) for event in events_in(output) if isinstance(event, StepDone)]


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that nothing interrupts."""
    output = tmp_path_factory.mktemp("undisturbed")
    process = start_training(flags(model, output))
    printed, _none = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return output


def order(name: str, output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run `lorafit runs NAME` for the only run in `output` and return what it prints."""
    assert main(["runs", name, "--output_dir", str(output), "--lang", "en"]) == 0
    assert not RunDir(run_folder(output)).order.exists(), "the order is taken"
    return capsys.readouterr().out


def listed(output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["runs", "--output_dir", str(output), "--lang", "en"]) == 0
    return capsys.readouterr().out


def saved_steps(output: Path) -> list[int]:
    return [event.step for event in events_in(output) if isinstance(event, Saved)]


def step_in(printed: str, pattern: str) -> int:
    """Return the step in `printed`, which must match `pattern` as a whole."""
    found = re.fullmatch(pattern, printed)
    assert found, printed
    return int(found[1])


@pytest.mark.parametrize("more", [[], ["--no_supervisor"]], ids=["supervisor", "no_supervisor"])
def test_a_run_is_paused_continued_stopped_and_resumed_to_the_same_losses(
    model: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    process = start_training([*flags(model, tmp_path), *more])
    try:
        wait_for_step(tmp_path, 1)
        folder = run_folder(tmp_path)
        path = re.escape(str(folder))

        printed = order("pause", tmp_path, capsys)
        paused = step_in(printed, rf"✓ Paused after step (\d+)\. Continue: lorafit runs continue {path}\n")
        assert " paused " in listed(tmp_path, capsys)
        assert saved_steps(tmp_path) == [paused]
        (event,) = [event for event in events_in(tmp_path) if isinstance(event, Paused)]
        assert event.text == f"Paused by the user. Continue: lorafit runs continue {folder}"
        time.sleep(1.5)
        assert losses(tmp_path)[-1][0] == paused, "no step while paused"
        assert process.poll() is None

        printed = order("continue", tmp_path, capsys)
        assert printed == f"✓ Training continues after step {paused}: lorafit runs show {folder}\n"
        wait_for_step(tmp_path, paused + 1)
        assert info_of(RunDir(folder)).state == "running"
        assert [event.text for event in events_in(tmp_path) if isinstance(event, Continued)] == [
            "Continued by the user."
        ]

        printed = order("stop", tmp_path, capsys)
        stopped = step_in(printed, rf"✓ Stopped after step (\d+)\. Resume: lorafit resume {path}\n")
        text, _none = process.communicate(timeout=60)
        assert process.returncode == 143, text
    finally:
        process.kill()
        process.communicate()
    assert paused < stopped < STEPS
    assert isinstance(events_in(tmp_path)[-1], Stopped)
    assert saved_steps(tmp_path) == [paused, stopped]
    assert " stopped " in listed(tmp_path, capsys)

    words = shlex.split(printed.partition("Resume: lorafit ")[2])
    done = subprocess.run([sys.executable, "-m", "lorafit", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert isinstance(events_in(tmp_path)[-1], Finished)
    assert losses(tmp_path) == losses(undisturbed)


@pytest.mark.parametrize(("more", "lang", "words"), [
    ([], "en", "The run's folder was deleted during the training."),
    (["--no_supervisor"], "zh", "训练期间，训练记录的文件夹被删除了。"),
], ids=["supervisor", "no_supervisor"])  # fmt: skip
def test_a_run_whose_folder_is_deleted_saves_the_adapter_beside_it_and_ends_with_2(
    model: Path, tmp_path: Path, more: list[str], lang: str, words: str
) -> None:
    process = start_training([*flags(model, tmp_path), *more, "--lang", lang])
    try:
        wait_for_step(tmp_path, 1)
        folder = run_folder(tmp_path)
        shutil.rmtree(folder)
        printed, _none = process.communicate(timeout=60)
    finally:
        process.kill()
    rescued = tmp_path / f"{folder.name}-rescued"
    assert process.returncode == 2, printed
    assert words in printed
    assert f"--init_adapter {rescued}" in printed
    assert "resume" not in printed
    assert [path.name for path in tmp_path.iterdir()] == [rescued.name], (
        "nothing is written to a folder of the old name"
    )
    assert read_adapter(rescued)[0].r == 4


@pytest.mark.parametrize("more", [[], ["--no_supervisor"]], ids=["supervisor", "no_supervisor"])
def test_a_run_whose_folder_is_moved_goes_on_in_the_new_place_with_the_same_losses(
    model: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    process = start_training([*flags(model, tmp_path / "a"), *more])
    try:
        wait_for_step(tmp_path / "a", 1)
        (tmp_path / "b").mkdir()
        run_folder(tmp_path / "a").rename(tmp_path / "b/llama-lora-20260101_000000")
        order("pause", tmp_path / "b", capsys)
        order("continue", tmp_path / "b", capsys)
        printed, _none = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, printed
    assert not list((tmp_path / "a").iterdir())
    assert losses(tmp_path / "b") == losses(undisturbed)
    run = RunDir(run_folder(tmp_path / "b"))
    assert [event.run for event in events_in(tmp_path / "b") if isinstance(event, Moved)] == [str(run.path)]
    assert (run.final_model / "adapter_model.safetensors").read_bytes() == (
        RunDir(run_folder(undisturbed)).final_model / "adapter_model.safetensors").read_bytes()  # fmt: skip
    assert f"training continues in {run.path}" in printed
    assert str(run.final_model) in printed
    assert run.report.is_file()
