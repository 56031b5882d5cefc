"""The chat at a terminal and from a pipe, in a real process with a fake engine; and files of many answers."""

import io
import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from support.paths import SUPPORT

from lorafit.errors import DiskError
from lorafit.reporters.terminal.answers import write_answers

Output = pytest.CaptureFixture[str]
CHAT = [sys.executable, str(SUPPORT / "echo_chat.py")]


def piped(lines: str, *flags: str) -> list[str]:
    """Return the lines that the chat writes to a pipe for the input `lines`."""
    environ = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([*CHAT, *flags], input=lines, capture_output=True, encoding="utf-8", env=environ, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def typed(*lines: str | None) -> tuple[str, int]:
    """Return what a terminal shows while a person types `lines` (None: Ctrl-C) and /exit, and the chat's exit code."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "dumb"
        os.execv(CHAT[0], CHAT)
    shown, left = "", iter([*lines, "/exit"])
    try:
        while text := read_terminal(terminal):
            shown += text
            print(repr(text))
            if shown.endswith("> "):
                line = next(left)
                os.write(terminal, b"\x03" if line is None else f"{line}\n".encode())
    finally:
        os.close(terminal)  # ends the chat if it still runs
        _pid, status = os.waitpid(pid, 0)
    return shown.replace("\r\n", "\n"), os.waitstatus_to_exitcode(status)


def read_terminal(terminal: int) -> str:
    """Return the next text from the terminal, or "" after the process has ended."""
    assert select.select([terminal], [], [], 30)[0], "the chat writes nothing"
    try:
        return os.read(terminal, 65536).decode()
    except OSError:  # on Linux, the end of the process
        return ""


def test_a_pipe_gets_the_answers_and_nothing_else() -> None:
    assert piped("a\n\n订金\n") == ["1:A", "3:订金"]


def test_reset_forgets_and_exit_leaves() -> None:
    lines = piped("a\n/reset\nb\n/exit\nc\n")
    assert (lines[0], lines[2:]) == ("1:A", ["1:B"])


def test_base_switches_the_adapter_off_and_on() -> None:
    lines = piped("/base\na\n/base\nb\n")
    assert [lines[1], lines[3]] == ["1:a", "3:B"]
    assert "no adapter" in piped("/base\n", "--no_adapter")[0]


def test_save_appends_a_row_that_training_reads(tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    piped(f"a\n/save {file}\nb\n/save {file}\n")
    rows = [json.loads(line)["messages"] for line in file.read_text("utf-8").splitlines()]
    assert [len(row) for row in rows] == [2, 4]
    assert rows[0] == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "1:A"}]


def test_save_reports_an_error_and_the_chat_continues(tmp_path: Path) -> None:
    lines = piped(f"/save\n/save {tmp_path}/no/such/folder.jsonl\na\n")
    assert "Name a file" in lines[0]
    assert "Not saved" in lines[1]
    assert lines[2] == "1:A"


def test_an_unknown_command_is_named_and_the_known_ones_listed() -> None:
    text = "\n".join(piped("/rest\n"))
    assert all(command in text for command in ("/rest", "/reset", "/base", "/save", "/help", "/exit"))


def test_ctrl_c_stops_the_answer_and_what_was_shown_is_remembered() -> None:
    text, code = typed("ab!cd", "e")
    assert "1:AB\n" in text
    assert "3:E" in text
    assert code == 0


def test_ctrl_c_twice_in_a_row_leaves_and_between_questions_does_not() -> None:
    text, code = typed(None, "a", None, "b")
    assert "1:A" in text
    assert "3:B" in text
    assert code == 0
    assert typed(None, None, "a")[1] == 130
    assert typed("a!", None, "b")[1] == 130


def test_the_prompt_shows_that_the_base_model_answers() -> None:
    assert "base> " in typed("/base")[0]


# files of many answers


def answers(count: int) -> Iterator[dict[str, str]]:
    yield from ({"question": f"问{i}", "answer": f"答{i}"} for i in range(count))


def test_many_answers_are_json_lines_and_progress_goes_to_another_stream(tmp_path: Path, capsys: Output) -> None:
    notes = io.StringIO()
    write_answers(answers(3), 3, str(tmp_path / "new" / "a.jsonl"), Console(file=notes))
    lines = (tmp_path / "new" / "a.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["answer"] for line in lines] == ["答0", "答1", "答2"]
    assert "问0" in lines[0]
    assert "3/3" in notes.getvalue()
    write_answers(answers(2), 2, None, Console(file=notes))
    assert [json.loads(line)["question"] for line in capsys.readouterr().out.splitlines()] == ["问0", "问1"]


def test_interrupted_answers_stay_in_a_partial_file(tmp_path: Path) -> None:
    def broken() -> Iterator[dict[str, str]]:
        yield from answers(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_answers(broken(), 2, str(tmp_path / "a.jsonl"), Console(file=io.StringIO()))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl.part"]


def test_a_folder_is_no_file_for_answers(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="folder"):
        write_answers(answers(1), 1, str(tmp_path), Console(file=io.StringIO()))
