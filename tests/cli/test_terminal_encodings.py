"""A terminal in ASCII, Latin-1 or GBK shows every command's output: what it lacks is replaced, and nothing fails."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from support.event_streams import a_whole_run
from support.fake_runs import ONE, TWO, make_run
from support.paths import ROOT
from support.tiny import save_chat_model

from lorafit.cli.app import COMMANDS, main
from lorafit.messages import set_language
from lorafit.reporters.terminal.encoding import NO_CHINESE, similar, use_fallbacks, writable_json
from lorafit.reporters.terminal.run import TerminalReporter

ENCODINGS = ("ascii", "latin-1", "gbk")


@contextlib.contextmanager
def terminal(encoding: str) -> Iterator[Callable[[], str]]:
    """Redirect stdout and stderr to streams in `encoding`, strict as in a pipe; yield a function for their text."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        yield lambda: "".join(stream.buffer.getvalue().decode(encoding) for stream in streams)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs and a data file that has Chinese text and an invalid row."""
    folder = tmp_path_factory.mktemp("终端")
    make_run(folder / "output", ONE)
    make_run(folder / "output", TWO, stop_after=5, learning_rate=2e-4)
    rows = [{"question": f"第 {i} 条说什么？", "answer": "它说“是”。" * 9} for i in range(12)]
    (folder / "law.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"无": 1}]), "utf-8")
    return folder


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command_writes_to_a_terminal_that_lacks_characters(encoding: str, language: str, folder: Path) -> None:
    output = ["--output_dir", str(folder / "output")]
    demo = ["--model_name", "demo", "--dataset_name", str(folder / "law.jsonl"), "--max_rejects", "1"]
    helps = [[name, "--help"] for name in COMMANDS]
    shown = [["data", str(folder / "law.jsonl")], ["machines"], ["plan", *demo], ["plan", *demo, "--json"],
             ["runs", *output], ["runs", "show", TWO, *output], ["runs", "diff", ONE, TWO, *output]]  # fmt: skip
    refused = [
        ["train", "--没有"],
        ["chat", "不存在", *output],
        ["runs", "show", "无", *output],
        ["bundle", "无", *output],
    ]
    with terminal(encoding) as text:
        for code, commands in ((0, [["--help"], *helps, *shown]), (2, refused)):
            for command in commands:
                assert main([*command, "--lang", language]) == code, (command, text()[-900:])
        assert "Traceback" not in text()
        assert "Qwen" in text(), "the table of machines or the help was written here"
        assert ("它说" in text()) == (encoding == "gbk")


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_run_writes_to_a_terminal_that_lacks_characters(encoding: str, language: str) -> None:
    set_language(language)
    with terminal(encoding) as text:
        use_fallbacks()
        reporter = TerminalReporter(Console(highlight=False, force_terminal=True, force_interactive=True))
        for event in a_whole_run():
            reporter.on_event(event)
        reporter.close()
        assert "OK" in text()


@pytest.mark.parametrize("encoding", ["big5", "euc_jp", "shift_jis", "latin-1"])
def test_a_terminal_with_other_chinese_characters_only_is_told(encoding: str) -> None:
    set_language("zh")
    with terminal(encoding) as text:
        use_fallbacks()
        assert NO_CHINESE.format(encoding=encoding) in text()


def test_marks_and_letters_become_similar_ones() -> None:
    assert similar("✓ ⚠️  ✗ a → b · ⟦é⟧ … ：█ 中") == "OK !  X a -> b - [[e]] ... :# ?"


def test_json_keeps_its_values_where_characters_are_lacking() -> None:
    text = json.dumps({"answer": "可以 ✓ 😀"}, ensure_ascii=False)
    for encoding in ENCODINGS:
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        stream.write(writable_json(text, stream))
        stream.seek(0)
        assert json.loads(stream.read()) == {"answer": "可以 ✓ 😀"}


def test_an_error_shows_the_codes_of_characters_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--machine", "RTX\x1b[31m\u202e"]) == 2
    error = capsys.readouterr().err
    assert "RTX⟨U+001B⟩[31m⟨U+202E⟩" in error
    assert "\x1b" not in error


def environments() -> Iterator[dict[str, str]]:
    """Yield variables that make the terminal of a real process ASCII, Latin-1 and GBK."""
    yield {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    yield from ({"PYTHONIOENCODING": encoding} for encoding in ("latin-1", "gbk"))


def in_ascii(command: list[str], folder: Path, language: str = "en") -> subprocess.CompletedProcess[bytes]:
    """Run `command` in `folder`, where the locale is ASCII, and check that it asks for another locale."""
    environ = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    environ |= {"LORAFIT_LANG": language, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-m", "lorafit", *command], env=environ, cwd=folder, capture_output=True)
    assert done.returncode == 2, done.stderr.decode()
    assert "LC_ALL=C.UTF-8" in done.stderr.decode()
    return done


@pytest.mark.parametrize("command", [["train", "--demo", "--output_dir", "输出"], ["chat", "输出/run"]])
def test_a_folder_that_libraries_would_not_find_is_refused_before_a_run(command: list[str], tmp_path: Path) -> None:
    in_ascii(command, tmp_path)
    assert not list(tmp_path.iterdir())


def test_such_a_folder_is_also_refused_in_a_settings_file(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("output_dir: 输出\n", "utf-8")
    in_ascii(["train", "--demo", "--config", "settings.yaml"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yaml"]


@pytest.mark.parametrize("command", [["train"], ["plan"], ["chat", "--prompt", "Hello"]], ids=lambda words: words[0])
def test_a_model_below_a_current_folder_with_such_a_name_is_refused_in_the_users_language(
    command: list[str], demo_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "法律"
    save_chat_model(folder / "tiny", demo_folder)
    (folder / "law.jsonl").write_text('{"question": "Who pays?", "answer": "The tenant."}\n' * 9, "utf-8")
    model = (
        ["--base_model", "tiny"] if command[0] == "chat" else ["--model_name", "tiny", "--dataset_name", "law.jsonl"]
    )
    assert "这个文件夹名需要 UTF-8" in in_ascii([*command, *model], folder, "zh").stderr.decode()


def test_a_data_file_whose_name_is_in_another_encoding_asks_for_the_locale(tmp_path: Path) -> None:
    environ = {"LOCPATH": str(tmp_path), "LC_ALL": "zh_CN.GBK"}
    made = subprocess.run(["localedef", "-i", "zh_CN", "-f", "GBK", str(tmp_path / "zh_CN.GBK")], capture_output=True)
    if made.returncode:
        pytest.skip("this system has no sources of locales")
    words = [sys.executable, "-m", "lorafit", "train", "--demo", "--dataset_name", os.fsdecode("中文.jsonl".encode())]
    environ = {**os.environ, **environ, "PYTHONPATH": str(ROOT), "LORAFIT_LANG": "en"}
    done = subprocess.run(words, env=environ, cwd=tmp_path, capture_output=True)
    assert done.returncode == 2
    assert b"LC_ALL=C.UTF-8" in done.stderr


@pytest.mark.parametrize("environ", environments(), ids=ENCODINGS)
def test_a_real_process_exits_with_its_code_and_no_traceback(environ: dict[str, str], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "lorafit", "runs", "show", "没有", "--output_dir", str(tmp_path)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    done = subprocess.run(words, env={**clean, "LORAFIT_LANG": "zh", **environ}, capture_output=True)
    text = done.stderr.decode("gbk", "replace")
    assert done.returncode == 2, text
    assert "Traceback" not in text
    assert (NO_CHINESE[:22] in text) == (environ.get("PYTHONIOENCODING") != "gbk")
