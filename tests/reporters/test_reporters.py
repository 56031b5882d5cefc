"""Reporters of a run: the terminal, a log file and TensorBoard; also errors and the next commands to paste."""

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.event_streams import RUN, START, a_whole_run, finished, planned, started, step_done
from support.paths import ROOT

from lorafit.errors import ConfigError
from lorafit.events import (
    Answered,
    EvalDone,
    Evaluating,
    Event,
    Failed,
    Moved,
    Resumed,
    Stage,
    Stopped,
    Warned,
)
from lorafit.reporters.tensorboard import TensorBoardReporter
from lorafit.reporters.terminal.errors import show_error
from lorafit.reporters.terminal.run import TerminalReporter
from lorafit.reporters.terminal.throughput import Throughput


def output_of(events: list[Event], live: bool = False) -> str:
    """Return the output on a terminal of 80 columns (`live`) or in a log file."""
    out = io.StringIO()
    settings: dict[str, Any] = {"force_terminal": True, "force_interactive": True} if live else {}
    terminal = TerminalReporter(Console(file=out, width=80, highlight=False, _environ={"TERM": "xterm"}, **settings))
    for event in events:
        terminal.on_event(event)
    terminal.close()
    return out.getvalue()


def without_codes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_log_gets_plain_lines_with_every_fact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (Path(RUN) / "best_model").mkdir(parents=True)
    text = output_of(a_whole_run())
    for fact in (
        "Loading the model ...",
        "✓ No GPU found",
        "steps = 100: 800 rows, 16 a step, num_epochs 2",
        "memory = 3.0 GiB: predicted peak; 16.0 GiB available",
        "Training demo on cpu; steps: 100, training rows: 800, validation rows: 20, trainable parameters: 4,884,480.",
        "step 50: validation loss 1.7500 (best so far)",
        "step 50: saved checkpoints/step-000050 (32 MiB)",
        "the battery is low",
        "step 100/100  loss 2.000  300 tok/s  2.0 GiB",
        "2.5000 before training, 1.5000 after",
        "1.2500 at step 80",
        f"{RUN}/final_model",
    ):
        assert fact in text, fact


def test_a_log_has_no_control_characters() -> None:
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f]", output_of(a_whole_run())) is None


@pytest.mark.parametrize("seconds", [0.01, 4.0, 400.0])
def test_a_log_is_not_filled_however_long_the_steps_take(seconds: float) -> None:
    steps = 2000
    text = output_of([started(steps=steps), *(step_done(step, seconds) for step in range(1, steps + 1))])
    lines = [line for line in text.splitlines() if line.startswith("step ")]
    assert 20 <= len(lines) <= 500
    assert lines[-1].startswith(f"step {steps}/{steps}")


def test_the_progress_of_an_evaluation_is_shown_live_and_not_in_a_log() -> None:
    events = [started(), Stage(text="Evaluating on 20 held-out rows"), Evaluating(rows=20, share=0.4)]
    assert "40%" in output_of(events, live=True)
    assert "40%" not in output_of(events)


def test_a_terminal_80_wide_shows_plan_bar_and_summary_on_whole_lines() -> None:
    text = without_codes(output_of(a_whole_run(), live=True))
    assert re.search(r"memory +3.0 GiB +predicted peak; 16.0 GiB available", text)
    bar = next(line for line in re.split(r"[\r\n]+", text) if "100/100" in line)
    assert "loss 2.000" in bar
    assert "300 tok/s" in bar
    assert "2.0 GiB" in bar
    assert "ETA" not in bar, "all steps are done"
    assert len(bar.rstrip()) <= 80


def test_the_next_commands_are_last_and_never_broken_over_lines() -> None:
    run = "output/" + "x" * 100
    question = Answered(step=100, question="能退定金吗？", base="不知道", tuned="不能")
    for live in (False, True):
        lines = without_codes(output_of([started(run=run), step_done(100), finished(), question], live)).splitlines()
        assert lines[-5].endswith(f"lorafit chat {run}")
        assert [line.rpartition("--to ")[2].split()[0] for line in lines[-4:-1]] == ["ollama", "lmstudio", "mlx"]
        assert lines[-1].endswith("tensorboard --logdir output")


def test_both_answers_are_shown() -> None:
    event = Answered(question="能退定金吗？", base="不知道。", tuned="定金不退，订金可退。")
    for live in (False, True):
        text = without_codes(output_of([event], live))
        assert "能退定金吗？" in text
        assert "不知道。" in text
        assert "定金不退，订金可退。" in text


def test_a_stopped_run_shows_how_to_resume() -> None:
    text = output_of([started(), step_done(1), Stopped(step=1, signal=2)])
    assert "after step 1" in text
    assert f"resume {RUN}" in text


def test_unknown_memory_is_left_out_and_never_zero() -> None:
    text = output_of([started(), step_done(1, peak_bytes=None)])
    assert "iB" not in text.splitlines()[-1]


def test_brackets_in_texts_are_not_taken_for_markup() -> None:
    for live in (False, True):
        assert "[/red] data[0]" in without_codes(
            output_of([Stage(text="[/red] data[0]"), started(), Warned(text="[/red] data[0]")], live)
        )


def test_no_colour_is_written_where_none_is_wanted() -> None:
    out = io.StringIO()
    environ = {"TERM": "xterm-256color", "NO_COLOR": "1"}
    terminal = TerminalReporter(
        Console(file=out, width=80, force_terminal=True, force_interactive=True, _environ=environ)
    )
    terminal.on_event(Warned(text="careful"))
    assert not re.search(r"\x1b\[(3[0-7]|38;|9[0-7])", out.getvalue())


def test_the_throughput_is_measured_from_the_first_step_of_this_process() -> None:
    throughput = Throughput(steps=100, step=40)
    throughput.on_event(step_done(41, loss=3.0))
    assert throughput.loss == pytest.approx(3.0)
    assert throughput.seconds_left == pytest.approx(59 * 4.0)
    throughput.on_event(step_done(42, loss=float("nan")))
    assert throughput.loss == pytest.approx(3.0)
    assert throughput.tokens_per_second == pytest.approx(300.0)


def next_command(name: str, run: str, program: Path | str, folder: Path) -> list[str]:
    """Return the words of a command of `next_commands` in a process that is started as `program` in `folder`."""
    path = folder / program
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"from lorafit.reporters.terminal import next_commands\nprint(next_commands.{name}({run!r}))")
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(program)]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=True)
    return shlex.split(done.stdout)


@pytest.mark.parametrize(
    ("program", "chat", "resume"),
    [
        ("train.py", ["inference.py", "--lora_weights", "a b", "--interactive"], ["train.py", "--resume", "a b"]),
        ("lorafit", ["chat", "a b"], ["resume", "a b"]),
        (
            "lorafit/__main__.py",
            ["-m", "lorafit", "chat", "a b"],
            ["lorafit", "resume", "a b"],
        ),
    ],
)
def test_commands_have_the_form_in_use(program: str, chat: list[str], resume: list[str], tmp_path: Path) -> None:
    assert next_command("chat", "a b", program, tmp_path)[-len(chat) :] == chat
    assert next_command("resume", "a b", program, tmp_path)[-len(resume) :] == resume


def test_a_program_that_is_linked_into_a_folder_of_path_needs_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uv and pipx install programs so."""
    (tmp_path / "lorafit").symlink_to(Path(sys.executable).with_name("lorafit"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert next_command("chat", "a", "tool/lorafit", tmp_path)[:2] == ["lorafit", "chat"]


def test_an_error_shows_its_four_parts_with_and_without_a_terminal() -> None:
    error = ConfigError("What happened.", where="/data[0]/x.yaml", found="lora_r: 'x'", fix="Write a number.")
    for settings in ({}, {"force_terminal": True, "force_interactive": True}):
        out = io.StringIO()
        show_error(error, Console(file=out, width=80, _environ={"TERM": "xterm"}, **settings))  # type: ignore[arg-type]
        for part in ("What happened.", "/data[0]/x.yaml", "lora_r: 'x'", "Write a number."):
            assert part in without_codes(out.getvalue())


def test_commands_are_relative_to_the_working_directory(tmp_path: Path) -> None:
    program = tmp_path / "train.py"
    resume = next_command("resume", str(tmp_path / "output" / "a"), program, tmp_path)
    assert resume[-3:] == ["train.py", "--resume", "output/a"]
    assert next_command("chat", "output/a", program, tmp_path)[-4] == "inference.py"
    from_root = next_command("chat", "output/a", program, Path("/"))
    assert from_root[-4] == str((tmp_path / "inference.py").relative_to("/"))


def test_a_failed_run_ends_with_the_command_that_resumes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "resume" not in output_of([started(), step_done(1), Failed(step=1, text="The folder was deleted.")])
    Path(RUN).mkdir(parents=True)
    text = output_of([started(), step_done(1), Failed(step=1, text="The disk is full.")])
    assert "failed after step 1" in text
    assert f"resume {RUN}" in text


# TensorBoard


def write(events: list[Event]) -> None:
    board = TensorBoardReporter()
    for event in events:
        board.on_event(event)
    board.close()


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / "logs"))
    read.Reload()
    return {tag: [(s.step, s.value) for s in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_reads_back_every_figure(tmp_path: Path) -> None:
    evaluated = EvalDone(time=START, step=2, loss=1.75, target_tokens=9000, seconds=3.0, best=True)
    write([started(tmp_path), step_done(1, peak_bytes=None), step_done(2), evaluated])
    read = scalars(tmp_path)
    assert read["train/loss"] == [(1, 2.0), (2, 2.0)]
    assert read["valid/loss"] == [(2, 1.75)]
    assert read["train/learning_rate"] == [(1, pytest.approx(1e-4)), (2, pytest.approx(1e-4))]
    assert read["train/grad_norm"] == [(1, 0.5), (2, 0.5)]
    assert read["speed/tokens_per_second"] == [(1, 300.0), (2, 300.0)]
    assert read["memory/peak_gib"] == [(2, 2.0)]  # no point at step 1, where the peak is unknown


def test_points_carry_the_time_of_their_event(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write([started(tmp_path), step_done(3)])
    read = EventAccumulator(str(tmp_path / "logs"))
    read.Reload()
    assert read.Scalars("train/loss")[0].wall_time == START + 12.0


def test_after_a_resume_the_points_above_its_step_are_gone(tmp_path: Path) -> None:
    write([started(tmp_path), *(step_done(step) for step in range(1, 8))])
    again = [step_done(step, loss=1.0) for step in range(6, 9)]
    write([Resumed(time=START, step=5, checkpoint="step-000005"), started(tmp_path, step=5), *again])
    expected = [(step, 2.0) for step in range(1, 6)] + [(step, 1.0) for step in range(6, 9)]
    assert scalars(tmp_path)["train/loss"] == expected


def test_a_run_that_is_moved_before_its_start_is_shown_has_all_points_in_its_new_place(tmp_path: Path) -> None:
    write([started(tmp_path / "old"), step_done(1), Moved(step=1, run=str(tmp_path)), step_done(2)])
    assert scalars(tmp_path)["train/loss"] == [(1, 2.0), (2, 2.0)]
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_nothing_is_written_for_a_run_that_never_started(tmp_path: Path) -> None:
    write([Stage(text="Loading"), planned()])
    assert list(tmp_path.iterdir()) == []


def test_the_reporters_load_no_tensor_library(tmp_path: Path) -> None:
    program = f"""
import sys
from lorafit.events import Started, StepDone
from lorafit.reporters.tensorboard import TensorBoardReporter
from lorafit.reporters.terminal.run import TerminalReporter
board = TensorBoardReporter()
board.on_event(Started(run={str(tmp_path)!r}, model="m", engine="e", device="cpu", steps=1, train_samples=1, valid_samples=0,
                  trainable_parameters=1))
board.on_event(StepDone(step=1, loss=1.0, target_tokens=1, tokens=1, grad_norm=1.0, lr=1.0, seconds=1.0, peak_bytes=None,
                   micro_batches=1, epoch=1.0))
board.close()
assert not {{"torch", "transformers", "tensorflow", "datasets", "mlx"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
