"""Can a run be told of, compared and removed, whole or damaged? Small real runs of the shipped fake engine."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from rich.console import Console

from lorafit import history, run_faces
from lorafit.cli import main
from lorafit.config import TrainConfig, write_yaml
from lorafit.engines.base import Setup
from lorafit.engines.fake import FakeEngine
from lorafit.errors import RunError
from lorafit.events import EventLog, Failed, Resumed, Started, StepDone, Stopped
from lorafit.history import Difference, read
from lorafit.loop import Job, Progress, train
from lorafit.plan.plan import Choice, Plan
from lorafit.reporters.history import show_record
from lorafit.reporters.sparkline import BARS, sparkline
from lorafit.rundir import RunDir

Output = pytest.CaptureFixture[str]

SAMPLES = tiny.make_samples(40)
CHOICES = [Choice("device", "cpu", "✓ No GPU found: training on the CPU"), Choice("steps", "10", "32 rows, 16 a step")]
ONE, TWO = "llama-lora-20260101_120000", "llama-lora-20260102_120000"


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFIT_LANG", "en")
    monkeypatch.setenv("COLUMNS", "100")


def make_job(run: RunDir, plan: Plan, stop_after: int | None = None) -> Job:
    count: list[int] = []

    def stop() -> int | None:
        count.append(1)
        return 15 if len(count) == stop_after else None

    engine = FakeEngine(Setup(run.path, "fake", "cpu", "fp32", plan=plan))
    return Job(engine, SAMPLES[:32], SAMPLES[32:], run, plan, lambda _folder: None, stop)


def started(run: RunDir, plan: Plan) -> Started:
    return Started(
        run=str(run.path), model="demo", engine="fake", device="cpu", steps=plan.steps,
        train_samples=32, valid_samples=8, trainable_parameters=512,
    )  # fmt: skip


def make_run(output: Path, name: str = ONE, stop_after: int | None = None, **settings: object) -> RunDir:
    """A run of ten steps; with `stop_after` stopped there and not gone on with."""
    run = RunDir(output / name)
    run.path.mkdir(parents=True)
    write_yaml(TrainConfig(lora_r=8, effective_batch=16, **settings), run.config)  # type: ignore[arg-type]
    rate = settings.get("learning_rate", 1e-4)
    plan = tiny.make_plan(eval_steps=3, save_steps=4, valid_samples=8, learning_rate=rate, choices=CHOICES)
    plan.save(run.plan)
    with EventLog(run.events) as log:
        log.write(started(run, plan))
        for event in train(make_job(run, plan, stop_after), Progress()):
            log.write(event)
    return run


def go_on(run: RunDir) -> None:
    """Resume a run that was stopped after its fifth step."""
    plan = Plan.load(run.plan)
    job = make_job(run, plan)
    job.engine.load(run.checkpoints / "step-000005")
    progress = Progress()
    progress.done = 5
    with EventLog(run.events) as log:
        log.write(Resumed(step=5, checkpoint="step-000005"))
        for event in train(job, progress):
            log.write(event)


# show


def test_a_run_is_shown_with_settings_plan_losses_curves_and_how_to_go_on(tmp_path: Path, capsys: Output) -> None:
    run = make_run(tmp_path, learning_rate=2e-4)
    assert main(["runs", "show", ONE, "--output_dir", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    results = history.results(read(run))
    for pattern in (
        r"state +finished, 10 of 10 steps",
        r"model +demo \(torch/cpu/fp32\)",
        r"lora_r +8 +default 32",
        r"learning_rate +0.0002 +default 0.0001",
        r"device +cpu +No GPU found",
        r"steps +10 +32 rows, 16 a step",
        rf"held out, before +{results.valid_loss_before:.4f}",
        rf"held out, after +{results.valid_loss_after:.4f}",
        rf"held out, best +{results.best_loss:.4f} at step 10",
        rf"\nloss +[{BARS}]{{10}} ",
        rf"\nvalid_loss +[{BARS}]{{5}} ",
        rf"\nlr +[{BARS}]{{10}} ",
        rf"\ntokens/s +[{BARS}]{{10}} ",
        rf"{re.escape(str(run.final_model))}\n",
        rf"chat --lora_weights {re.escape(str(run.path))} --interactive",
    ):
        assert re.search(pattern, text), pattern
    assert "lora_alpha" not in text, "a default needs no line"
    assert "effective_batch" not in text, "16 is what None means"
    assert "Restarts" not in text
    assert "resume" not in text


def test_without_a_name_the_latest_run_is_shown_and_a_path_does_too(tmp_path: Path, capsys: Output) -> None:
    make_run(tmp_path, TWO)
    older = make_run(tmp_path, ONE)
    for words, name in (([], TWO), (["latest"], TWO), ([str(older.path)], ONE)):
        assert main(["runs", "show", *words, "--output_dir", str(tmp_path)]) == 0
        assert re.search(rf"run +{name}", capsys.readouterr().out)


def test_a_stopped_run_tells_how_to_go_on_and_a_resumed_one_of_its_restart(tmp_path: Path, capsys: Output) -> None:
    run = make_run(tmp_path, stop_after=5)
    assert main(["runs", "show", str(run.path)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"state +stopped, 5 of 10 steps", text)
    assert re.search(rf"resume.* {re.escape(str(run.path))}\n", text)
    assert str(run.checkpoints / "step-000005") in text or str(run.best_model) in text, "its adapter so far"
    go_on(run)
    assert main(["runs", "show", str(run.path)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"state +finished, 10 of 10 steps", text)
    assert re.search(r"Restarts\nafter step 5 +step-000005", text)
    assert [e.step for e in read(run).of(StepDone)] == list(range(1, 11))


def test_a_failed_run_tells_why(tmp_path: Path, capsys: Output) -> None:
    run = make_run(tmp_path, stop_after=5)
    with EventLog(run.events) as log:
        log.write(Failed(step=5, text="The disk is full."))
    assert main(["runs", "show", str(run.path)]) == 0
    assert re.search(r"failed +The disk is full\.", capsys.readouterr().out)


def damage_config(run: RunDir) -> None:
    run.config.write_text("lora_r: [8\n")


def damage_plan(run: RunDir) -> None:
    run.plan.write_text('{"steps": 10, "cho')


def plan_is_a_list(run: RunDir) -> None:
    run.plan.write_text("[1]")


def plan_has_odd_choices(run: RunDir) -> None:
    run.plan.write_text(json.dumps({"choices": [3, {"setting": "device"}, {"setting": 1, "value": 2, "reason": 3}]}))


def drop_plan(run: RunDir) -> None:
    run.plan.unlink()


def drop_config(run: RunDir) -> None:
    run.config.unlink()


def drop_events(run: RunDir) -> None:
    run.events.unlink()


def tear_events(run: RunDir) -> None:
    run.events.write_bytes(run.events.read_bytes()[:-70] + b"\xff\x00")


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
        (damage_plan, ["plan.json", "default 32"]),
        (drop_plan, ["plan.json", "default 32"]),
        (plan_is_a_list, ["plan.json", "default 32"]),
        (plan_has_odd_choices, ["default 32", "finished"]),
        (drop_events, ["default 32", "interrupted", "final_model"]),
        (tear_events, ["default 32", "valid_loss", "final_model"]),
        (events_of_odd_types, ["default 32", "valid_loss", "final_model"]),
        (drop_adapter, ["default 32", "finished"]),
    ],
)
def test_a_damaged_run_is_shown_as_far_as_it_can_be(
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
    show_record(read(run), Console(file=out, width=80, force_terminal=True, force_interactive=True, color_system=None))
    lines = out.getvalue().splitlines()
    assert all(len(line.rstrip()) <= 80 for line in lines if str(run.path) not in line and "tensorboard" not in line)


# curves


def test_a_sparkline_reaches_from_its_least_to_its_greatest_value() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == BARS
    assert sparkline([3.0, 3.0]) == BARS[4] * 2
    assert sparkline([]) == ""
    long = sparkline(list(range(1000, 0, -1)), width=40)
    assert len(long) == 40
    assert (long[0], long[-1]) == (BARS[-1], BARS[0])
    assert sparkline([0, 0, 10, 10], width=2) == BARS[0] + BARS[-1]


def test_the_curves_are_drawn_into_a_picture(tmp_path: Path, capsys: Output) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    run = make_run(tmp_path)
    picture = tmp_path / "new" / "curves.png"
    assert main(["runs", "show", str(run.path), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture) in capsys.readouterr().out
    assert main(["runs", "show", str(run.path), "--plot", str(tmp_path / "curves.doc")]) == 2
    assert ".doc" in capsys.readouterr().err


def test_without_matplotlib_it_is_said_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    run = make_run(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["runs", "show", str(run.path), "--plot", "curves.png"]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err


# diff


def test_two_runs_are_set_beside_each_other_with_what_differs(tmp_path: Path, capsys: Output) -> None:
    one, two = make_run(tmp_path, ONE), make_run(tmp_path, TWO, learning_rate=3e-3, seed=7)
    assert main(["runs", "diff", ONE, "latest", "--output_dir", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert re.search(rf"{ONE} +{TWO}", text)
    assert re.search(r"learning_rate +0.0001 +0.003\n", text)
    assert re.search(r"seed +42 +7\n", text)
    assert "lora_r" not in text
    assert text.count("learning_rate") == 1, "the plan says nothing new of it"
    losses = [f"{history.results(read(run)).valid_loss_after:.4f}" for run in (one, two)]
    assert re.search(rf"held out, after +{losses[0]} +{losses[1]}\n", text)
    assert losses[0] > losses[1]


def test_runs_that_differ_in_nothing_say_so(tmp_path: Path, capsys: Output) -> None:
    run = make_run(tmp_path)
    assert main(["runs", "diff", str(run.path), str(run.path)]) == 0
    text = capsys.readouterr().out
    assert "settings: the same" in text
    assert "plan: the same" in text


def test_a_plan_that_differs_though_the_settings_do_not_is_told(tmp_path: Path, capsys: Output) -> None:
    one, two = make_run(tmp_path, ONE), make_run(tmp_path, TWO)
    replace(Plan.load(two.plan), token_budget=512, device="cuda").save(two.plan)
    assert main(["runs", "diff", str(one.path), str(two.path)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"token_budget +4096 +512\n", text)
    assert re.search(r"device +cpu +cuda\n", text)


def test_differences_keep_the_order_and_count_what_is_missing_as_none() -> None:
    pairs = history.differences({"b": 1, "a": 2, "c": 3}, {"a": 5, "c": 3, "d": 4})
    assert pairs == [Difference("b", 1, None), Difference("a", 2, 5), Difference("d", None, 4)]


# remove


def test_a_run_is_removed_whole_when_that_is_said_in_advance(tmp_path: Path, capsys: Output) -> None:
    make_run(tmp_path, ONE)
    kept = make_run(tmp_path, TWO)
    assert main(["runs", "remove", ONE, "--yes", "--output_dir", str(tmp_path)]) == 0
    assert list(tmp_path.iterdir()) == [kept.path]
    assert ONE in capsys.readouterr().out


@pytest.mark.parametrize(("answer", "gone"), [("y", True), ("是", True), ("", False), ("n", False), (None, False)])
def test_on_a_terminal_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str | None, gone: bool
) -> None:
    run = make_run(tmp_path)
    asked: list[str] = []

    def answered(question: str) -> str:
        asked.append(question)
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("builtins.input", answered)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert main(["runs", "remove", str(run.path)]) == 0
    assert run.path.exists() is not gone
    assert str(run.path) in asked[0]
    assert "finished" in asked[0]


def test_without_a_terminal_nothing_is_removed_unless_said(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    command = [sys.executable, "-m", "lorafit", "runs", "remove", str(run.path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert run.events.exists()


def test_a_run_that_is_going_on_is_not_removed(tmp_path: Path, capsys: Output) -> None:
    run = make_run(tmp_path, stop_after=5)
    with run.lock():
        assert main(["runs", "remove", str(run.path), "--yes"]) == 2
    assert "going on" in capsys.readouterr().err
    assert run.events.exists()


def test_a_folder_that_is_no_run_is_not_removed(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    assert main(["runs", "remove", str(tmp_path / "thesis"), "--yes"]) == 2
    assert "no such run" in capsys.readouterr().err
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_a_project_with_a_config_yaml_is_taken_for_no_run_to_remove(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "config.yaml").write_text("theme: dark\n")
    (tmp_path / "thesis.txt").write_text("precious")
    assert main(["runs", "remove", str(tmp_path), "--yes"]) == 2
    assert "thesis.txt" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").exists()


def test_a_link_to_a_run_is_not_followed(tmp_path: Path, capsys: Output) -> None:
    run = make_run(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(run.path)
    assert main(["runs", "remove", str(tmp_path / "link"), "--yes"]) == 2
    assert run.events.exists()


def test_a_damaged_run_can_be_removed(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    damage_config(run)
    tear_events(run)
    (run.path / ".DS_Store").write_bytes(b"x")
    history.remove(read(run))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_run_that_may_not_be_deleted_is_told_in_words(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    tmp_path.chmod(0o500)
    try:
        assert main(["runs", "remove", str(run.path), "--yes"]) == 2
    finally:
        tmp_path.chmod(0o700)


def test_all_names_that_a_run_gives_its_files_are_its_own(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    names = [name for name, value in vars(RunDir).items() if isinstance(value, property) and name not in ("name",)]
    for name in names:
        getattr(run, name).touch()
    assert run.foreign() == []
    (tmp_path / "mine.txt").touch()
    assert [path.name for path in run.foreign()] == ["mine.txt"]


# words


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["shwo"], "lorafit runs show"),
        (["diff", "one"], "diff RUN RUN"),
        (["remove"], "remove RUN"),
        (["show", "a", "b"], "show RUN"),
        (["show", "nothing"], "no such run"),
        (["show", "--polt", "x"], "--plot"),
    ],
)
def test_wrong_words_are_answered_with_right_ones(
    words: list[str], answer: str, tmp_path: Path, capsys: Output
) -> None:
    assert main(["runs", *words, "--output_dir", str(tmp_path)]) == 2
    assert answer in capsys.readouterr().err


@pytest.mark.parametrize("deed", run_faces.DEEDS)
def test_each_deed_has_its_help(deed: str, capsys: Output) -> None:
    assert main(["runs", deed, "--help"]) == 0
    assert "--output_dir" in capsys.readouterr().out


def test_list_is_what_runs_alone_does(tmp_path: Path, capsys: Output) -> None:
    make_run(tmp_path)
    assert main(["runs", "--output_dir", str(tmp_path)]) == 0
    alone = capsys.readouterr().out
    assert main(["runs", "list", "--output_dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == alone
    assert ONE in alone


def test_a_run_written_by_another_meanwhile_is_refused_by_its_lock(tmp_path: Path) -> None:
    run = make_run(tmp_path, stop_after=5)
    record = read(run)
    assert record.last(Stopped)
    with run.lock(), pytest.raises(RunError, match="Another process"):
        history.remove(record)
