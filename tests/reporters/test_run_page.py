"""The HTML page of a run, and the notifications at its end."""

import re
import stat
from pathlib import Path

import pytest
from support.plans import make_plan

from lorafit.config import TrainConfig, write_yaml
from lorafit.errors import ConfigError
from lorafit.events import Answered, EvalDone, Event, EventLog, Failed, Finished, Restarted, Resumed, Started, StepDone
from lorafit.messages import set_language
from lorafit.reporters import notify
from lorafit.reporters.html.curve import make_chart, means, nice_ticks
from lorafit.reporters.html.run import RunPageReporter, run_page
from lorafit.reporters.notify import Notifier, desktop_command, own_command
from lorafit.run_folders import history
from lorafit.run_folders.directory import RunDir

EVIL = "<script>alert(1)</script>"


def started(run: RunDir, step: int = 0) -> Started:
    return Started(step=step, run=str(run.path), model="demo", engine="torch", device="cpu", steps=4, train_samples=8, valid_samples=2, trainable_parameters=10)  # fmt: skip


def step(number: int) -> StepDone:
    return StepDone(step=number, loss=3.0 / number, target_tokens=10, tokens=20, grad_norm=1.0, lr=1e-4, seconds=2.0, peak_bytes=2**30, micro_batches=1, epoch=0.5)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run whose process was killed once and that finished."""
    run = RunDir(tmp_path / "llama-lora-20261124_000000")
    run.path.mkdir()
    write_yaml(TrainConfig(dataset_name=EVIL, lora_r=8), run.config)
    make_plan(steps=4, predicted_peak_bytes=3 * 2**29).save(run.plan)
    events: list[Event] = [
        started(run),
        EvalDone(step=0, loss=3.5, target_tokens=5, seconds=1, best=False),
        *map(step, (1, 2, 3)),
    ]
    events += [
        Restarted(step=2, text="The process was killed.", cause="killed", lost_steps=1),
        Resumed(step=2, checkpoint="step-000002"),
    ]
    events += [started(run, 2), step(3), step(4), EvalDone(step=4, loss=1.25, target_tokens=5, seconds=1, best=True)]
    events += [
        Finished(
            step=4,
            seconds=8,
            valid_loss_before=3.5,
            valid_loss_after=1.25,
            best_step=4,
            best_loss=1.25,
            path="final_model",
        )
    ]
    events += [Answered(step=4, question=EVIL, base="old", tuned="new")]
    with EventLog(run.events) as log:
        for event in events:
            log.write(event)
    return run


def test_the_page_has_all_facts_of_the_run_in_both_languages(run: RunDir) -> None:
    for language in ("en", "zh"):
        set_language(language)
        html = run_page(history.read_record(run))
        for text in ("1.2500", "3.5000", "The process was killed.", "1.5 GiB", "1.0 GiB", "lora_r", "new", "<polyline"):
            assert text in html, text
        assert f'lang="{"zh-CN" if language == "zh" else "en"}"' in html


def test_the_page_loads_nothing_and_runs_no_script(run: RunDir) -> None:
    html = run_page(history.read_record(run))
    assert EVIL not in html
    assert "<script" not in html
    assert not re.findall(r'(?:src|href)="', html)
    assert "default-src 'none'" in html


def test_the_page_is_written_when_the_run_is_over(run: RunDir) -> None:
    reader = RunPageReporter()
    reader.on_event(started(run))
    reader.close()
    assert "<polyline" in run.report.read_text("utf-8")
    assert not run.foreign_files()


def test_a_damaged_run_still_has_a_page(run: RunDir) -> None:
    run.plan.write_text("[]")
    run.config.write_text(": :")
    run.events.write_text('{"event": "step", "step": "x", "loss": []}\n')
    assert "<h1>" in run_page(history.read_record(run))


def test_ticks_are_round_and_hold_the_values_between_them() -> None:
    assert nice_ticks(0, 10) == [0, 5, 10]
    assert nice_ticks(1.25, 3.5) == [1, 2, 3, 4]
    assert nice_ticks(0.0001, 0.0005)[0] <= 0.0001
    ticks = nice_ticks(2, 2)
    assert ticks[0] < 2 < ticks[-1]


def test_many_points_are_joined_to_their_means() -> None:
    points = means([(n, float(n)) for n in range(10_000)], 480)
    assert len(points) <= 480
    assert points[0] == (10.0, 10.0)
    assert make_chart("none", {"loss": []}) is None


# notifications


def test_the_desktop_command_gets_arguments_and_no_shell() -> None:
    evil = '"; rm -rf ~ #'
    assert desktop_command("Linux", "lorafit", evil)[-2:] == ["lorafit", evil]
    mac = desktop_command("Darwin", "lorafit", evil)
    assert mac[0] == "osascript"
    assert mac[-2:] == [evil, "lorafit"]
    assert evil not in " ".join(mac[:-2])


def test_the_users_command_is_split_and_gets_title_and_text() -> None:
    assert own_command("curl -d 'a b'", "t", "x; y") == ["curl", "-d", "a b", "t", "x; y"]
    for wrong in ("", "  ", "'open"):
        with pytest.raises(ConfigError, match="notify"):
            own_command(wrong, "t", "x")


def write_program(path: Path, arguments: Path) -> Path:
    """Write a program that appends its arguments to the file `arguments`, each followed by "|"."""
    path.write_text(f'#!/bin/sh\nprintf "%s|" "$@" >> "{arguments}"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_command_is_run_once_at_the_end_with_no_shell_between(tmp_path: Path, run: RunDir) -> None:
    script = write_program(tmp_path / "notify me", tmp_path / "arguments")
    notifier = Notifier(f"'{script}' $HOME")
    notifier.on_event(started(run))
    notifier.on_event(Failed(step=3, text="x"))
    notifier.close()
    assert (tmp_path / "arguments").read_text() == f"$HOME|lorafit|Training failed after step 3: {run.name}|"


def test_a_run_without_an_end_and_a_command_that_fails_do_no_harm(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    Notifier("false").close()
    assert capsys.readouterr().err == ""
    notifier = Notifier("no-such-command-here")
    notifier.on_event(Failed(step=3, text="x"))
    notifier.close()
    assert "no-such-command-here" in capsys.readouterr().err


def test_short_runs_are_silent_and_long_ones_notify_the_desktop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: RunDir
) -> None:
    (tmp_path / "bin").mkdir()
    for program in ("notify-send", "osascript"):
        write_program(tmp_path / "bin" / program, tmp_path / "arguments")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "arguments").touch()
    for seconds, notifications in ((0.0, 0), (100.0, 1)):
        notifier = Notifier()
        notifier.on_event(Failed(step=3, text="x"))
        notifier._began -= seconds
        notifier.close()
        assert (tmp_path / "arguments").read_text().count("Training failed after step 3") == notifications
    assert notify.LONG_SECONDS > 0
