"""Tests of `lorafit runs show`, also on damaged runs. The runs are small real ones of the fake engine."""

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from support.damaged_runs import damage_config, tear_events
from support.fake_runs import ONE, TWO, go_on, make_run

from lorafit.cli.app import main
from lorafit.events import EventLog, Failed, StepDone
from lorafit.reporters.terminal.history import show_record
from lorafit.reporters.terminal.sparkline import BARS, sparkline
from lorafit.run_folders import history
from lorafit.run_folders.directory import RunDir
from lorafit.run_folders.history import read_record

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the width of the terminal for `rich`."""
    monkeypatch.setenv("COLUMNS", "100")


# show


def test_a_run_is_shown_with_settings_plan_losses_curves_and_next_steps(tmp_path: Path, capsys: Output) -> None:
    run = make_run(tmp_path, learning_rate=2e-4)
    assert main(["runs", "show", ONE, "--output_dir", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    results = history.results(read_record(run))
    for pattern in (
        r"state +finished, step 10 of 10\n",
        r"model +demo \(torch/cpu/fp32\)",
        r"lora_r +8 +default: 32",
        r"learning_rate +0.0002 +default: 0.0001",
        r"device +cpu +No GPU found",
        r"steps +10 +32 rows, 16 a step",
        rf"validation loss, before +{results.valid_loss_before:.4f}",
        rf"validation loss, after +{results.valid_loss_after:.4f}",
        rf"validation loss, best +{results.best_loss:.4f} at step 10",
        rf"\nloss +[{BARS}]{{10}} ",
        rf"\nvalid_loss +[{BARS}]{{5}} ",
        rf"\nlr +[{BARS}]{{10}} ",
        rf"\ntokens/s +[{BARS}]{{10}} ",
        rf"{re.escape(str(run.final_model))}\n",
        rf"chat {re.escape(str(run.path))}\n",
    ):
        assert re.search(pattern, text), pattern
    assert "lora_alpha" not in text, "a default needs no line"
    assert "effective_batch" not in text, "16 is the default"
    assert "Resumed" not in text
    assert "resume" not in text


def test_without_a_name_the_latest_run_is_shown_and_a_path_is_accepted(tmp_path: Path, capsys: Output) -> None:
    make_run(tmp_path, TWO)
    older = make_run(tmp_path, ONE)
    for words, name in (([], TWO), (["latest"], TWO), ([str(older.path)], ONE)):
        assert main(["runs", "show", *words, "--output_dir", str(tmp_path)]) == 0
        assert re.search(rf"run +{name}", capsys.readouterr().out)


def test_a_stopped_run_shows_how_to_resume_and_a_resumed_one_its_restart(tmp_path: Path, capsys: Output) -> None:
    run = make_run(tmp_path, stop_after=5)
    assert main(["runs", "show", str(run.path)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"state +stopped, step 5 of 10\n", text)
    assert re.search(rf"resume.* {re.escape(str(run.path))}\n", text)
    assert str(run.checkpoints / "step-000005") in text or str(run.best_model) in text, "its adapter so far"
    go_on(run)
    assert main(["runs", "show", str(run.path)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"state +finished, step 10 of 10\n", text)
    assert re.search(r"Resumed\nafter step 5 +step-000005", text)
    assert [e.step for e in read_record(run).of_kind(StepDone)] == list(range(1, 11))


def test_a_failed_run_shows_why(tmp_path: Path, capsys: Output) -> None:
    run = make_run(tmp_path, stop_after=5)
    with EventLog(run.events) as log:
        log.write(Failed(step=5, text="The disk is full."))
    assert main(["runs", "show", str(run.path)]) == 0
    assert re.search(r"failed +The disk is full\.", capsys.readouterr().out)


def damage_plan(run: RunDir) -> None:
    run.plan.write_text('{"steps": 10, "cho')


def plan_is_a_list(run: RunDir) -> None:
    run.plan.write_text("[1]")


def plan_has_odd_choices(run: RunDir) -> None:
    choice = {"setting": "path", "value": "fast", "reason": "as it was"}
    broken = [{**choice, "again": recipe} for recipe in (3, {"reason": {"text": "{x}", "with": {}}}, {"reason": {}})]
    choices = [3, {"setting": "device"}, {"setting": 1, "value": 2, "reason": 3}, *broken]
    run.plan.write_text(json.dumps({"choices": choices}))


def drop_plan(run: RunDir) -> None:
    run.plan.unlink()


def drop_config(run: RunDir) -> None:
    run.config.unlink()


def drop_events(run: RunDir) -> None:
    run.events.unlink()


def events_of_odd_types(run: RunDir) -> None:
    odd = [{"event": "step", "loss": "many", "step": "x", "tokens": None, "seconds": [], "lr": True}, {"event": "eval"}]
    text = "\n".join(json.dumps({"target_tokens": 0, "best": False, **facts}) for facts in odd)
    run.events.write_text(f"{run.events.read_text()}{text}\n[]\nnull\n")


def drop_adapter(run: RunDir) -> None:
    for folder in (run.final_model, run.best_model, run.checkpoints):
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_config, ["config.yaml", "No GPU found"]),
        (drop_config, ["config.yaml", "No GPU found"]),
        (damage_plan, ["plan.json", "default: 32"]),
        (drop_plan, ["plan.json", "default: 32"]),
        (plan_is_a_list, ["plan.json", "default: 32"]),
        (plan_has_odd_choices, ["default: 32", "finished", "as it was"]),
        (drop_events, ["default: 32", "interrupted", "final_model"]),
        (tear_events, ["default: 32", "valid_loss", "final_model"]),
        (events_of_odd_types, ["default: 32", "valid_loss", "final_model"]),
        (drop_adapter, ["default: 32", "finished"]),
    ],
)
def test_a_damaged_run_is_shown_as_far_as_possible(
    tmp_path: Path, capsys: Output, damage: Callable[[RunDir], None], words: list[str]
) -> None:
    run = make_run(tmp_path)
    damage(run)
    assert main(["runs", "show", str(run.path)]) == 0
    text = capsys.readouterr().out
    for word in words:
        assert word in text
    assert main(["runs", "diff", str(run.path), str(run.path)]) == 0
    assert main(["runs", "--output_dir", str(tmp_path)]) == 0
    assert ONE in capsys.readouterr().out


def test_on_a_terminal_80_wide_no_line_but_a_command_is_longer(tmp_path: Path) -> None:
    run = make_run(tmp_path, dataset_name="a/very/long/" + "name/" * 30, stop_after=5)
    out = io.StringIO()
    show_record(
        read_record(run), Console(file=out, width=80, force_terminal=True, force_interactive=True, color_system=None)
    )
    lines = out.getvalue().splitlines()
    assert all(len(line.rstrip()) <= 80 for line in lines if str(run.path) not in line and "tensorboard" not in line)


# curves


def test_a_sparkline_spans_the_least_to_the_greatest_value() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == BARS
    assert sparkline([3.0, 3.0]) == BARS[4] * 2
    assert sparkline([]) == ""
    long = sparkline(list(range(1000, 0, -1)), width=40)
    assert len(long) == 40
    assert (long[0], long[-1]) == (BARS[-1], BARS[0])
    assert sparkline([0, 0, 10, 10], width=2) == BARS[0] + BARS[-1]


def test_the_curves_are_drawn_into_an_image_file(tmp_path: Path, capsys: Output) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    run = make_run(tmp_path)
    picture = tmp_path / "new" / "curves.png"
    assert main(["runs", "show", str(run.path), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture) in capsys.readouterr().out
    assert main(["runs", "show", str(run.path), "--plot", str(tmp_path / "curves.doc")]) == 2
    assert ".doc" in capsys.readouterr().err


def test_without_matplotlib_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    run = make_run(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["runs", "show", str(run.path), "--plot", "curves.png"]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err
