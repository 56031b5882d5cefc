"""The chat at a terminal and from a pipe: answers, commands and Ctrl-C; and files of many answers."""

import contextlib
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from lorafit.data.conversation import Conversation
from lorafit.engines.base import Engine
from lorafit.errors import DiskError
from lorafit.evaluation.chat import Chat
from lorafit.reporters.terminal.answers import write_answers
from lorafit.reporters.terminal.chat import talk
from lorafit.sampling import Sampling

Output = pytest.CaptureFixture[str]


class ByteTokenizer:
    """A tokenizer whose tokens are bytes. The prompt is the number of messages and the last message: "1:hello"."""

    stop_ids: frozenset[int] = frozenset()

    def prompt_ids(self, messages: Conversation, date_string: str, system_prompt: str | None = None) -> list[int]:
        return list(f"{len(messages)}:{messages[-1].content}".encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


class EchoEngine:
    """An engine that answers with the prompt, in capitals with the adapter on. A "!" stands for Ctrl-C."""

    on = True

    def set_adapter(self, on: bool) -> None:
        self.on = on

    def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[int]:
        text = bytes(prompt_ids)
        for byte in text.upper() if self.on else text:
            if byte == ord("!"):
                raise KeyboardInterrupt
            yield byte


def make_chat(has_adapter: bool = True) -> Chat:
    return Chat(
        cast(Engine, EchoEngine()), ByteTokenizer(), Sampling(), date_string="26 Jul 2024", has_adapter=has_adapter
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Keyboard(Terminal):
    """Stdin of a person who types `lines` (None: presses Ctrl-C) and then /exit."""

    def __init__(self, lines: Sequence[str | None]) -> None:
        super().__init__()
        self.lines = iter([*lines, "/exit"])

    def readline(self, _size: int | None = -1, /) -> str:
        line = next(self.lines)
        if line is None:
            raise KeyboardInterrupt
        return line + "\n"


def output_of_talk(stdin: io.StringIO, stdout: io.StringIO, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stdin", stdin)
    with contextlib.redirect_stdout(stdout):
        talk(chat)
    return stdout.getvalue()


def piped(lines: str, monkeypatch: pytest.MonkeyPatch, chat: Chat | None = None) -> list[str]:
    """Return the lines that the chat writes to a pipe for the input `lines`."""
    return output_of_talk(io.StringIO(lines), io.StringIO(), chat or make_chat(), monkeypatch).splitlines()


def typed(lines: Sequence[str | None], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what a terminal shows for the lines of a `Keyboard`, without the typed characters."""
    return output_of_talk(Keyboard(lines), Terminal(), make_chat(), monkeypatch)


def test_a_pipe_gets_the_answers_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert piped("a\n\n订金\n", monkeypatch) == ["1:A", "3:订金"]


def test_reset_forgets_and_exit_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = piped("a\n/reset\nb\n/exit\nc\n", monkeypatch)
    assert (lines[0], lines[2:]) == ("1:A", ["1:B"])


def test_base_switches_the_adapter_off_and_on(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = piped("/base\na\n/base\nb\n", monkeypatch)
    assert [lines[1], lines[3]] == ["1:a", "3:B"]
    assert "No adapter is loaded" in piped("/base\n", monkeypatch, make_chat(has_adapter=False))[0]


def test_save_appends_a_row_that_training_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "chat.jsonl"
    piped(f"a\n/save {file}\nb\n/save {file}\n", monkeypatch)
    rows = [json.loads(line)["messages"] for line in file.read_text("utf-8").splitlines()]
    assert [len(row) for row in rows] == [2, 4]
    assert rows[0] == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "1:A"}]


def test_save_reports_an_error_and_the_chat_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = piped(f"/save\n/save {tmp_path}/no/such/folder.jsonl\na\n", monkeypatch)
    assert "Give a file name: /save chat.jsonl" in lines[0]
    assert "Not saved" in lines[1]
    assert lines[2] == "1:A"


def test_an_unknown_command_is_named_and_the_known_ones_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(piped("/rest\n", monkeypatch))
    assert all(command in text for command in ("/rest", "/reset", "/base", "/save", "/help", "/exit"))


def test_ctrl_c_stops_the_answer_and_what_was_shown_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    text = typed(["ab!cd", "e"], monkeypatch)
    assert "1:AB\n" in text
    assert "3:E" in text


def test_ctrl_c_twice_in_a_row_leaves_and_between_questions_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "1:A" in typed([None, "a", None, "b"], monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        typed([None, None, "a"], monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        typed(["a!", None, "b"], monkeypatch)


def test_the_prompt_shows_that_the_base_model_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "base> " in typed(["/base"], monkeypatch)


# files of many answers


def answers(count: int) -> Iterator[dict[str, str]]:
    yield from ({"question": f"问{i}", "answer": f"答{i}"} for i in range(count))


def test_many_answers_are_json_lines_and_progress_goes_to_another_stream(tmp_path: Path, capsys: Output) -> None:
    notes = io.StringIO()
    write_answers(answers(3), 3, tmp_path / "new" / "a.jsonl", Console(file=notes))
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
        write_answers(broken(), 2, tmp_path / "a.jsonl", Console(file=io.StringIO()))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl.part"]


def test_a_folder_is_no_file_for_answers(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="folder"):
        write_answers(answers(1), 1, tmp_path, Console(file=io.StringIO()))
