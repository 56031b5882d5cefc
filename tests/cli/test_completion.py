"""Tests of the shell completion of commands, flags, values and runs, in real shells."""

import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from lorafit.cli.app import COMMANDS, main
from lorafit.cli.completion import SETTINGS, SHELLS, script

Output = pytest.CaptureFixture[str]

RUN = "output/llama-lora-20260101_120000"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the completion scripts of all shells and one run."""
    for shell in SHELLS:
        (tmp_path / f"lorafit.{shell}").write_text(script(shell))
    (tmp_path / RUN).mkdir(parents=True)
    (tmp_path / RUN / "events.jsonl").touch()
    return tmp_path


def completions(folder: Path, *words: str) -> list[str]:
    """Return the completions that bash offers for the last of `words`."""
    program = """
source lorafit.bash
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
$(complete -p lorafit | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
printf '%s\\n' "${COMPREPLY[@]}"
"""
    command = ["bash", "--norc", "-c", program, "bash", "lorafit", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_takes_the_script(folder: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-n", f"lorafit.{shell}"], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_is_found(folder: Path) -> None:
    assert set(completions(folder, "")) >= set(COMMANDS)
    assert completions(folder, "doc") == ["doctor"]


def test_every_command_names_its_settings() -> None:
    assert {command.split()[0] for command in SETTINGS} == COMMANDS.keys()


@pytest.mark.parametrize("command", SETTINGS)
def test_exactly_the_flags_that_help_lists_are_found(folder: Path, command: str, capsys: Output) -> None:
    words = command.split()
    assert main([*words, "--help"]) == 0
    listed = set(re.findall(r"(?m)^  (--\w+)", capsys.readouterr().out))
    assert set(completions(folder, *words, "--")) == {*listed, "--help"}


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        (["train", "--device", ""], ["auto", "cuda", "mps", "cpu"]),
        (["train", "--device", "=", "c"], ["cuda", "cpu"]),
        (["train", "--device", "="], ["auto", "cuda", "mps", "cpu"]),
        (["train", "--lang", "z"], ["zh"]),
        (["train", "--resume", ""], [RUN]),
        (["chat", "--lora_weights", "o"], [RUN]),
        (["resume", "out"], [RUN]),
        (["runs", "s"], ["show", "stop"]),
        (["runs", "show", "l"], ["latest"]),
        (["runs", "diff", RUN, "out"], [RUN]),
        (["runs", "remove", RUN, "--y"], ["--yes"]),
        (["cloud", "c"], ["colab"]),
        (["cloud", "sage"], ["sagemaker"]),
        (["cloud", "kaggle", "out"], [RUN]),
        (["cloud", "kaggle", "--base"], ["--base_model"]),
        (["train", "--output_dir", ""], []),  # the shell then completes files and folders
        (["--print_completion", ""], ["bash", "zsh"]),
    ],
)
def test_words_and_values_are_found(folder: Path, words: list[str], answers: list[str]) -> None:
    assert completions(folder, *words) == answers


def test_nothing_in_a_folders_name_is_run(folder: Path) -> None:
    run = folder / "output" / "$(touch pwned)`touch pwned`"
    run.mkdir()
    (run / "events.jsonl").touch()
    assert RUN in completions(folder, "runs", "show", "")
    assert not (folder / "pwned").exists()


def terminal_output(shell: list[str], setup: str, keys: str, wanted: str) -> str:
    """Run `shell` in a terminal, type `keys` after `setup`, and return its output, complete once `wanted` appears."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", PS1="$ ")
        os.execvp(shell[0], shell)
    text = ""

    def read_until(word: str) -> None:
        nonlocal text
        end = time.monotonic() + 30
        while word not in text and time.monotonic() < end:
            if select.select([terminal], [], [], 0.1)[0]:
                text += os.read(terminal, 65536).decode(errors="replace")

    try:
        os.write(terminal, f"{setup}; echo READ''Y\n".encode())
        read_until("READY")
        os.write(terminal, keys.encode())
        read_until(wanted)
        return text
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


@pytest.mark.parametrize(("shell", "flags"), [("bash", ["--norc", "--noprofile", "-i"]), ("zsh", ["-f", "-i"])])
def test_the_tab_key_completes_in_a_real_terminal(folder: Path, shell: str, flags: list[str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    setup = f"cd {folder}; source ./lorafit.{shell}"
    assert "--quantization" in terminal_output([shell, *flags], setup, "lorafit train --quant\t", "--quantization")


def test_the_script_is_printed_and_another_shell_is_refused(capsys: Output) -> None:
    for flag in ("--print_completion", "--print-completion"):
        assert main([flag, "bash"]) == 0
        assert capsys.readouterr().out == script("bash")
    assert main(["--print_completion", "fish", "--lang", "en"]) == 2
    assert "bash, zsh" in capsys.readouterr().err
    assert main(["--print_completion", "--lang", "en"]) == 2
