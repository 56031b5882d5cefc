"""Tests of `lorafit runs diff` and `lorafit runs remove`, also on damaged runs."""

import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.damaged_runs import damage_config, tear_events
from support.fake_runs import ONE, TWO, make_run

from lorafit.cli import runs
from lorafit.cli.app import main
from lorafit.errors import RunError
from lorafit.events import Stopped
from lorafit.planner.plan import Plan
from lorafit.run_folders import history
from lorafit.run_folders.directory import RunDir
from lorafit.run_folders.history import SettingDifference, read_record

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the width of the terminal for `rich`."""
    monkeypatch.setenv("COLUMNS", "100")


# diff


def test_two_runs_are_shown_side_by_side_with_their_differences(tmp_path: Path, capsys: Output) -> None:
    one, two = make_run(tmp_path, ONE), make_run(tmp_path, TWO, learning_rate=3e-3, seed=7)
    assert main(["runs", "diff", ONE, "latest", "--output_dir", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert re.search(rf"{ONE} +{TWO}", text)
    assert re.search(r"learning_rate +0.0001 +0.003\n", text)
    assert re.search(r"seed +42 +7\n", text)
    assert "lora_r" not in text
    assert text.count("learning_rate") == 1, "the plan does not repeat it"
    losses = [f"{history.results(read_record(run)).valid_loss_after:.4f}" for run in (one, two)]
    assert re.search(rf"validation loss, after +{losses[0]} +{losses[1]}\n", text)
    assert losses[0] > losses[1]


def test_runs_that_differ_in_nothing_say_so(tmp_path: Path, capsys: Output) -> None:
    run = make_run(tmp_path)
    assert main(["runs", "diff", str(run.path), str(run.path)]) == 0
    text = capsys.readouterr().out
    assert "settings: identical" in text
    assert "plan: identical" in text


def test_a_plan_that_differs_under_equal_settings_is_shown(tmp_path: Path, capsys: Output) -> None:
    one, two = make_run(tmp_path, ONE), make_run(tmp_path, TWO)
    replace(Plan.load(two.plan), token_budget=512, device="cuda").save(two.plan)
    assert main(["runs", "diff", str(one.path), str(two.path)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"token_budget +4096 +512\n", text)
    assert re.search(r"device +cpu +cuda\n", text)


def test_differences_keep_the_order_and_show_a_missing_setting_as_none() -> None:
    pairs = history.differences({"b": 1, "a": 2, "c": 3}, {"a": 5, "c": 3, "d": 4})
    assert pairs == [SettingDifference("b", 1, None), SettingDifference("a", 2, 5), SettingDifference("d", None, 4)]


# remove


def test_a_run_is_removed_completely_with_yes(tmp_path: Path, capsys: Output) -> None:
    make_run(tmp_path, ONE)
    kept = make_run(tmp_path, TWO)
    assert main(["runs", "remove", ONE, "--yes", "--output_dir", str(tmp_path)]) == 0
    assert list(tmp_path.iterdir()) == [kept.path]
    assert ONE in capsys.readouterr().out


ANSWERS = {"y": "y\n", "是": "是\n", "": "\n", "n": "n\n", None: "\x04"}  # the last one: Ctrl-D, the end of the input
REMOVALS = """
import sys
from lorafit.cli.app import main
for path in sys.argv[1:]:
    print("exit code", main(["runs", "remove", path]))
"""


@pytest.fixture(scope="module")
def removals(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, tuple[RunDir, str]]:
    """For each of ANSWERS the run to remove, and what one process on a terminal printed when it removed it."""
    runs = {answer: make_run(tmp_path_factory.mktemp("removal")) for answer in ANSWERS}
    terminal, stdin = pty.openpty()
    os.write(terminal, "".join(ANSWERS.values()).encode())
    command = [sys.executable, "-c", REMOVALS, *(str(run.path) for run in runs.values())]
    environ = {**os.environ, "LORAFIT_LANG": "en", "PYTHONUTF8": "1"}
    done = subprocess.run(command, stdin=stdin, capture_output=True, encoding="utf-8", env=environ, timeout=60)
    os.close(terminal)
    os.close(stdin)
    printed = re.split(r"(?<=exit code \d)\n", done.stdout)
    return {answer: (run, text) for (answer, run), text in zip(runs.items(), printed, strict=False)}


@pytest.mark.parametrize(("answer", "gone"), [("y", True), ("是", True), ("", False), ("n", False), (None, False)])
def test_on_a_terminal_the_user_is_asked(
    removals: dict[str | None, tuple[RunDir, str]], answer: str | None, gone: bool
) -> None:
    run, printed = removals[answer]
    assert printed.endswith("exit code 0")
    assert run.path.exists() is not gone
    question = printed.partition("[y/N]")[0]
    assert str(run.path) in question
    assert "finished" in question


def test_without_a_terminal_nothing_is_removed_without_yes(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    command = [sys.executable, "-m", "lorafit", "runs", "remove", str(run.path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert run.events.exists()


def test_a_run_that_is_being_written_is_not_removed(tmp_path: Path, capsys: Output) -> None:
    run = make_run(tmp_path, stop_after=5)
    with run.lock():
        assert main(["runs", "remove", str(run.path), "--yes"]) == 2
    assert "still running" in capsys.readouterr().err
    assert run.events.exists()


def test_a_folder_that_is_no_run_is_not_removed(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    assert main(["runs", "remove", str(tmp_path / "thesis"), "--yes"]) == 2
    assert "Run not found" in capsys.readouterr().err
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_a_project_with_a_config_yaml_is_not_removed(tmp_path: Path, capsys: Output) -> None:
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
    history.remove_run_folder(read_record(run))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_run_that_may_not_be_deleted_gives_an_error(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    tmp_path.chmod(0o500)
    try:
        assert main(["runs", "remove", str(run.path), "--yes"]) == 2
    finally:
        tmp_path.chmod(0o700)


def test_no_file_of_a_run_counts_as_foreign(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    names = [name for name, value in vars(RunDir).items() if isinstance(value, property) and name not in ("name",)]
    for name in names:
        getattr(run, name).touch()
    assert run.foreign_files() == []
    (tmp_path / "mine.txt").touch()
    assert [path.name for path in run.foreign_files()] == ["mine.txt"]


# wrong arguments


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["shwo"], "lorafit runs show"),
        (["diff", "one"], "diff RUN RUN"),
        (["remove"], "remove RUN"),
        (["show", "a", "b"], "show RUN"),
        (["show", "nothing"], "Run not found"),
        (["show", "--polt", "x"], "--plot"),
    ],
)
def test_wrong_arguments_are_answered_with_right_ones(
    words: list[str], answer: str, tmp_path: Path, capsys: Output
) -> None:
    assert main(["runs", *words, "--output_dir", str(tmp_path)]) == 2
    assert answer in capsys.readouterr().err


@pytest.mark.parametrize("subcommand", runs.SUBCOMMANDS)
def test_each_subcommand_has_its_help(subcommand: str, capsys: Output) -> None:
    assert main(["runs", subcommand, "--help"]) == 0
    assert "--output_dir" in capsys.readouterr().out


def test_runs_without_a_subcommand_is_runs_list(tmp_path: Path, capsys: Output) -> None:
    make_run(tmp_path)
    assert main(["runs", "--output_dir", str(tmp_path)]) == 0
    alone = capsys.readouterr().out
    assert main(["runs", "list", "--output_dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == alone
    assert ONE in alone


def test_a_run_that_another_process_started_to_write_is_refused_by_its_lock(tmp_path: Path) -> None:
    run = make_run(tmp_path, stop_after=5)
    record = read_record(run)
    assert record.last(Stopped)
    with run.lock(), pytest.raises(RunError, match="Another process"):
        history.remove_run_folder(record)
