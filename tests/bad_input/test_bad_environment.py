"""What the system refuses ends with words and exit code 2, or 141 for a closed pipe; never with a traceback."""

import io
import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fake_runs import ONE, make_run
from support.paths import ROOT
from support.refusals import Refused, Words, adapter_bytes

from lorafit.cli.app import main
from lorafit.config import TrainConfig
from lorafit.data import cache
from lorafit.errors import ConfigError, RunError
from lorafit.paths import cache_folder, user_path
from lorafit.planner.plan import Plan
from lorafit.reporters.html.run import run_page
from lorafit.run_folders.directory import RunDir
from lorafit.run_folders.history import read_record

Output = pytest.CaptureFixture[str]
UNREADABLE = "cannot be read"


def shell(command: str, cwd: Path, **environ: str) -> tuple[int, str]:
    """Run `command` in bash, with the program as $L; return the exit code of the first command of a pipe, and stderr."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "L": f"{sys.executable} -m lorafit", **environ}
    line = f'{command}; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", line], cwd=cwd, env=variables, capture_output=True, timeout=120)
    return done.returncode, done.stderr.decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("$L --help | true", 141, ""),
        ("$L machines | head -1", 141, ""),
        ("$L runs show nothing --lang zh | head -c 0", 2, ""),
        ("$L machines --lang zh | true", 141, ""),
        ("$L machines > /dev/full", 2, "The disk is full."),
        ("$L --help > /dev/full", 2, "The disk is full."),
        ("$L --version > /dev/full", 2, "The disk is full."),
        ("$L runs show nothing 2> /dev/full", 2, ""),
        ("$L runs show nothing 2>&-", 2, ""),
        ("$L --version >&-", 0, ""),
        ("$L --version <&- >&- 2>&-", 0, ""),
        ("mkdir gone && cd gone && rmdir ../gone && $L runs", 2, "The current folder cannot be used."),
        ("mkdir gone && cd gone && rmdir ../gone && $L --version", 0, ""),
        ("$L runs --output_dir $'\\xff\\xfe'", 0, ""),
        ("$L train --demo --dry_run --output_dir $'\\xff'", 2, "not UTF-8"),
        ("$L chat $'\\xff\\x1b' <&-", 2, "No adapter found."),
        ("HOME= $L runs --output_dir '~/x'", 0, ""),
        ("$L runs --output_dir='~nouser/x'", 2, "The home folder is unknown."),
    ],
)
def test_streams_folders_and_bytes_of_a_real_process(command: str, code: int, words: str, tmp_path: Path) -> None:
    found, text = shell(command, tmp_path)
    assert found == code, text
    assert words in text
    assert "Traceback" not in text
    assert "Exception ignored" not in text


def test_chat_with_a_closed_stdin_or_bytes_that_are_not_text_ends(tmp_path: Path, model: Path) -> None:
    chat = f"$L chat --base_model {model} --max_new_tokens 2"
    for command in (f"{chat} <&-", f"printf '\\xff\\x00\\x80\\n/save a\\x00b\\n/\\xfe' | {chat}"):
        done, text = shell(f"set -o pipefail; {command}; exit $?", tmp_path)
        assert done == 0, text
        assert "Traceback" not in text


# reading without permission


@pytest.fixture
def locked(plain_user: Callable[[Path], None], tmp_path: Path) -> Callable[[Path], None]:
    """A function that takes the permission to read a file or folder of the test away."""

    def lock(path: Path) -> None:
        path.chmod(0)
        plain_user(tmp_path)
        if os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            pytest.skip("this system gives root's permissions to everyone")

    return lock


@pytest.fixture
def copied(model: Path, data: Path, adapter: Path, tmp_path: Path) -> Path:
    """A folder that anyone may write, with copies of a model, data, an adapter and a run."""
    folder = tmp_path / "here"
    shutil.copytree(model, folder / "model")
    shutil.copy(data, folder / "law.jsonl")
    shutil.copytree(adapter, folder / "adapter")
    make_run(folder / "output", ONE)
    (folder / "c.yaml").write_text("lora_r: 4\n")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777)
    return folder


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("model/tokenizer.json", "plan --model_name model --dataset_name law.jsonl"),
        ("model/tokenizer.json", "data law.jsonl --model_name model"),
        ("model/config.json", "plan --model_name model --dataset_name law.jsonl"),
        ("model/model.safetensors", "plan --model_name model --dataset_name law.jsonl"),
        ("model", "plan --model_name model --dataset_name law.jsonl"),
        ("law.jsonl", "data law.jsonl --model_name model"),
        ("law.jsonl", "plan --model_name model --dataset_name law.jsonl"),
        ("adapter/adapter_config.json", "chat adapter --base_model model --prompt hi"),
        ("adapter/adapter_model.safetensors", "chat adapter --base_model model --prompt hi"),
        ("adapter", "chat adapter --base_model model --prompt hi"),
        (f"output/{ONE}/events.jsonl", f"runs show {ONE}"),
        (f"output/{ONE}/events.jsonl", f"runs diff {ONE} {ONE}"),
        (f"output/{ONE}/events.jsonl", f"bundle {ONE} -o x.zip"),
        (f"output/{ONE}/config.yaml", f"bundle {ONE} -o x.zip"),
        (f"output/{ONE}", f"runs show {ONE}"),
        ("c.yaml", "plan --config c.yaml"),
        ("c.yaml", "chat --base_model model --test_file c.yaml"),
    ],
)
def test_a_file_without_read_permission_is_named(
    file: str,
    command: str,
    copied: Path,
    locked: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
) -> None:
    monkeypatch.chdir(copied)
    monkeypatch.setenv("LORAFIT_DATA_CACHE", str(copied / "cache"))
    locked(copied / file)
    assert main(command.split()) == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert "Permission denied" in text
    assert UNREADABLE in text
    assert Path(file).name in text
    assert "ownload" not in text


def test_a_list_of_runs_shows_the_run_that_cannot_be_read(
    copied: Path, locked: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.chdir(copied)
    locked(copied / "output" / ONE / "events.jsonl")
    assert main(["runs"]) == 0
    assert ONE in capsys.readouterr().out


# no home, no name


def test_a_user_without_home_and_name_has_a_cache_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Output
) -> None:
    def nobody(_uid: int) -> None:
        raise KeyError("uid not found")

    for name in ("HOME", "XDG_CACHE_HOME", "LORAFIT_CACHE", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = cache_folder()
    assert folder == tmp_path / f"lorafit-{os.getuid()}"
    assert folder.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="home folder is unknown"):
        user_path("~/x")
    monkeypatch.setattr(os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
    (tmp_path / f"lorafit-{os.getuid()}").mkdir()
    with pytest.raises(ConfigError, match="another user"):
        cache_folder()


def test_doctor_works_without_home_and_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Output) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: (_ for _ in ()).throw(KeyError("uid")))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["doctor", "--json"]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


# settings


def test_a_home_folder_is_put_in_every_path_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Output
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_run(tmp_path / "runs", ONE)
    (tmp_path / "c.yaml").write_text("output_dir: ~/runs\nplan: ~/plan.json\n")
    assert TrainConfig(output_dir="~/runs").output_dir == str(tmp_path / "runs")
    for flag in (["--output_dir=~/runs"], ["--output_dir", "~/runs"]):
        assert main(["runs", *flag]) == 0
        assert ONE in capsys.readouterr().out
        assert main(["bundle", ONE, *flag, "--output=~/x.zip"]) == 0
        assert (tmp_path / "x.zip").is_file()
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--config=~/c.yaml", "--model_name", "~/none"]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("name", ["output_dir", "notify", "system_prompt", "dataset_name"])
def test_bytes_that_no_file_of_the_run_can_hold_are_refused_before_the_first_step(
    name: str, flags: Callable[..., Words], refused: Refused, tmp_path: Path
) -> None:
    if name != "system_prompt":  # the command line replaces bytes in texts, as in a chat
        refused(flags(**{name: tmp_path / "output" / "\udcff\udcfe"}), "UTF-8")
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps({name: "a\0b"}), "utf-8")
    refused(["train", "--no_supervisor", "--config", str(file)], "U+0000")


def test_a_plan_with_wrong_types_is_named(flags: Callable[..., Words], refused: Refused, tmp_path: Path) -> None:
    good = make_run(tmp_path / "runs", ONE).plan
    facts = json.loads(good.read_text("utf-8"))
    file = tmp_path / "plan.json"
    for key in facts:
        for wrong in (None, "x", [1], {"a": []}, True):
            if isinstance(wrong, type(facts[key])) and wrong not in ([1], {"a": []}):
                continue
            file.write_text(json.dumps({**facts, key: wrong}), "utf-8")
            with pytest.raises(RunError, match="Not a plan"):
                Plan.load(file)
    file.write_text("[" * 100_000)
    with pytest.raises(RunError):
        Plan.load(file)
    refused(flags("--plan", file), file, "plan.json")


def test_old_cache_entries_are_deleted_while_a_publisher_renames_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LORAFIT_DATA_CACHE", str(tmp_path))
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    real = Path.stat

    def racing(path: Path, **options: bool) -> os.stat_result:
        if path.name == "b":
            raise FileNotFoundError(path)
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", racing)
    cache.prune()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_run_in_a_folder_whose_name_is_not_utf8_trains(
    flags: Callable[..., Words], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "\udcff"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"this file system takes only UTF-8: {error}")
    monkeypatch.chdir(folder)
    assert main(flags(output_dir="output")) == 0
    assert len(adapter_bytes(folder / "output")) > 100
    (run,) = (folder / "output").iterdir()
    assert main(["runs", "show", RunDir(run).name]) == 0


def test_data_files_whose_names_are_not_utf8_are_read_or_named(
    tmp_path: Path, data: Path, model: Path, capsys: Output
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    try:
        shutil.copy(data, folder / "\udcff.jsonl")
    except OSError as error:
        pytest.skip(f"this file system takes only UTF-8: {error}")
    for argv in (["data", str(folder)], ["data", str(folder / "\udcff.jsonl")], ["data", str(folder), "--json"]):
        for more in ([], ["-o", str(tmp_path / "\udcfe.html")]):
            assert main([*argv, "--model_name", str(model), *more]) in (0, 2)
            assert "Traceback" not in capsys.readouterr().err


def test_a_chat_reads_odd_lines(monkeypatch: pytest.MonkeyPatch, model: Path, capsys: Output) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\0\n\ufffd\n/\0\n/save \0\n/save\n//\n/exit now\n"))
    assert main(["chat", "--base_model", str(model), "--max_new_tokens", "2"]) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_a_time_that_no_calendar_has_is_shown_as_unknown(
    tmp_path: Path, flags: Callable[..., Words], capsys: Output
) -> None:
    assert main(["plan", *flags(max_steps=10**30)[2:]]) == 0
    assert "finish around ?" in capsys.readouterr().out
    run = make_run(tmp_path / "runs", ONE)
    lines = run.events.read_text("utf-8").splitlines()
    for when in (1e300, float("nan"), -1e18):
        run.events.write_text("".join(json.dumps({**json.loads(line), "time": when}) + "\n" for line in lines), "utf-8")
        assert main(["runs", "show", ONE, "--output_dir", str(tmp_path / "runs")]) == 0
        assert "<!DOCTYPE html>" in run_page(read_record(run))
