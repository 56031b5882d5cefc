"""Text that is not lorafit's own reaches no terminal raw: answers, file names, errors, notes and data."""

import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text
from support.comparisons import comparison
from support.fake_runs import make_run
from support.paths import ROOT

from lorafit.cli.app import main
from lorafit.data.text_checks import visible
from lorafit.errors import ConfigError
from lorafit.events import Answered, Stage, Warned
from lorafit.reporters.terminal.compare import show_comparison
from lorafit.reporters.terminal.console import open_console, show_pieces
from lorafit.reporters.terminal.encoding import writable_json
from lorafit.reporters.terminal.errors import show_error
from lorafit.reporters.terminal.run import TerminalReporter

Output = pytest.CaptureFixture[str]
EVIL = "\x1b]0;owned\x07\x1b[31mred\x9b2J\u202egnp\r[red]x[/nothing] :smile:"
CODES = ("⟨U+001B⟩", "⟨U+0007⟩", "⟨U+009B⟩", "⟨U+202E⟩", "⟨U+000D⟩")
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")
STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # of rich: what a terminal shows has colors


def consoles() -> Iterator[Console]:
    for terminal in (False, True):
        yield Console(
            file=io.StringIO(), force_terminal=terminal, width=400, highlight=False, markup=False, emoji=False
        )


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return STYLE.sub("", console.file.getvalue()) if console.is_terminal else console.file.getvalue()


def harmless(text: str) -> bool:
    return RAW.search(text) is None and all(code in text for code in CODES) and "[/nothing] :smile:" in text


def test_an_error_shows_codes() -> None:
    for console in consoles():
        show_error(ConfigError(EVIL, where=EVIL, found=EVIL, fix=EVIL), console)
        assert harmless(written(console))


def test_answers_of_a_run_and_its_notes_show_codes() -> None:
    for console in consoles():
        reporter = TerminalReporter(console)
        for event in (
            Answered(step=1, question=EVIL, base=EVIL, tuned=EVIL),
            Warned(step=1, text=EVIL),
            Stage(step=1, text="✓ " + EVIL),
        ):
            reporter.on_event(event)
        reporter.close()
        assert harmless(written(console))


def test_a_comparison_shows_codes() -> None:
    for console in consoles():
        compared = comparison(EVIL)
        show_comparison(compared, console)
        assert harmless(written(console))


def test_a_streamed_answer_shows_codes_at_every_split(capsys: Output) -> None:
    for at in range(len(EVIL)):
        show_pieces([EVIL[:at], EVIL[at:]])
        assert harmless(capsys.readouterr().out.removesuffix("\n"))
    show_pieces(["one\r", "\ntwo\n\tthree", "\r\r\n"])
    assert capsys.readouterr().out == "one\ntwo\n\tthree⟨U+000D⟩\n\n"


def test_json_on_a_terminal_has_escapes_and_the_same_values() -> None:
    text = json.dumps({EVIL: [EVIL]}, ensure_ascii=False)
    shown = writable_json(text, io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert RAW.search(shown) is None
    assert json.loads(shown) == {EVIL: [EVIL]}


def test_names_of_runs_files_and_flags_show_codes(tmp_path: Path, model: Path, data: Path, capsys: Output) -> None:
    name = EVIL.replace("/", "|")
    output = tmp_path / name
    make_run(output, name)
    file = tmp_path / f"{name}.jsonl"
    file.write_bytes(data.read_bytes())
    to = ["--output_dir", str(output)]
    tiny = ["--model_name", str(model)]
    for argv in (
        ["runs", *to], ["runs", "show", name, *to], ["runs", "diff", name, name, *to], ["runs", "remove", name, *to],
        ["runs", "list", "--output_dir", str(tmp_path / f"no{name}")], ["runs", name], [name], [f"--{name}"],
        ["data", str(file), *tiny], ["data", str(file), "--json", *tiny], ["data", f"{file}x", *tiny],
        ["plan", "--dataset_name", str(file), *tiny], ["plan", "--machine", EVIL, "--dataset_name", str(file), *tiny],
        ["chat", name, *to], ["train", "--config", str(file)], ["runs", "stop", name, *to],
    ):  # fmt: skip
        assert main(argv) in (0, 2)
        out, err = capsys.readouterr()
        assert RAW.search(out + err) is None, argv
        assert out or err


def test_texts_with_an_own_style_stay_as_they_are() -> None:
    assert Text("a\tb\nc ✓ 中 ⟦").plain == "a\tb\nc ✓ 中 ⟦"
    assert visible("a\tb\r\nc") == "a\tb\nc"
    console = open_console()
    with console.capture() as capture:
        console.print("[red]x[/red] :smile:")
    assert capture.get() == "[red]x[/red] :smile:\n"


def test_only_one_module_opens_consoles_and_prints() -> None:
    """Code that prints in another way would print foreign text raw."""
    allowed = {
        "reporters/terminal/console.py", "reporters/terminal/encoding.py",  # the place itself; a fixed sentence
        "reporters/terminal/answers.py", "cli/app.py", "cli/commands.py", "cli/plan.py",  # JSON with escapes; own texts
        "reporters/notify.py",  # a bell
    }  # fmt: skip
    found = {
        path.relative_to(ROOT / "lorafit").as_posix()
        for folder in ("cli", "reporters")
        for path in (ROOT / "lorafit" / folder).rglob("*.py")
        if re.search(r"(?<![\w.])(print|Console)\(", path.read_text("utf-8"))
    }
    assert found <= allowed


def test_a_chat_in_a_pipe_shows_codes_of_its_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: Output, model: Path, flags: Callable[..., list[str]]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/{EVIL}\n/save {os.devnull}/{EVIL}\n"))
    assert main(["chat", "--base_model", str(model), "--max_new_tokens", "2"]) == 0
    assert harmless(capsys.readouterr().out)
