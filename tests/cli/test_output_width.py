"""Tests of the layout of all output: no wider than the terminal, plain lines in a pipe, and one language.

Most output comes from the command line itself, with small real runs and data.
"""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from support.comparisons import comparison
from support.event_streams import a_whole_run
from support.fake_runs import ONE, TWO, make_run
from support.machine_outputs import M1, mac

from lorafit.cli.app import main
from lorafit.config import TrainConfig
from lorafit.diagnostics import examine
from lorafit.diagnostics.finding import Report
from lorafit.diagnostics.machine import machine_findings
from lorafit.diagnostics.packages import Packages
from lorafit.messages import set_language
from lorafit.planner.table import GuideTime, ModelOnMachine, cells, times
from lorafit.reporters.terminal.catalogue import show_tables
from lorafit.reporters.terminal.compare import show_comparison
from lorafit.reporters.terminal.doctor import show_report
from lorafit.reporters.terminal.run import TerminalReporter

Output = pytest.CaptureFixture[str]
Show = Callable[[], object]

CJK = re.compile(r"[\u3400-\u9fff\uff00-\uffef\u3000-\u303f]")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
COLOUR = re.compile(r"\x1b\[[\d;]*m")
CURSOR = re.compile(r"\x1b\[(?:\?\d+[hl]|\d*[A-HJK])|\r")
COMMAND = re.compile(
    r"lorafit (chat|resume|compare|export)|inference\.py|tensorboard|-m pip|--print_completion"
)  # commands to copy, which are not wrapped


def doctor() -> None:
    """Show the report of `lorafit doctor` on an M1 Mac."""
    machine = mac(M1)
    findings = [*machine_findings(machine, None), *examine.self_test_findings(machine, None)]
    show_report(Report(machine, findings, Packages([]), None), Console(highlight=False))


@cache
def tables() -> tuple[list[ModelOnMachine], list[GuideTime]]:
    return cells(TrainConfig()), times(TrainConfig())


def training() -> None:
    """Show the events of a complete run."""
    terminal = TerminalReporter(Console(highlight=False))
    for event in a_whole_run():
        terminal.on_event(event)
    terminal.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, and a data file with an invalid row. No text is Chinese."""
    folder = tmp_path_factory.mktemp("look")
    make_run(folder / "output", ONE)
    make_run(folder / "output", TWO, stop_after=5, learning_rate=2e-4)
    rows = [{"question": f"What does article {i} say?", "answer": "It says so. " * 9} for i in range(12)]
    text = "".join(json.dumps(row) + "\n" for row in [*rows, {"unknown": 1}])
    (folder / "law.jsonl").write_text(text + '{"question": \n')
    return folder


def displays(folder: Path, language: str) -> dict[str, Show]:
    """Return functions by name. Each prints one kind of output in `language`, which is already set."""
    lang, out = ["--lang", language], ["--output_dir", str(folder / "output"), "--lang", language]
    demo = ["--model_name", "demo", "--dataset_name", str(folder / "law.jsonl"), "--max_rejects", "1"]
    unreachable = ["--model_name", "Qwen/Qwen2.5-32B-Instruct", "--hf_endpoint", "http://127.0.0.1:9"]
    return {
        "overview": lambda: main(["--help", *lang]),
        "train": training,
        "doctor": doctor,
        "data": lambda: main(["data", str(folder / "law.jsonl"), *lang]),
        "machines": lambda: main(["machines", *lang]),
        "plan": lambda: main(["plan", *demo, *lang]),
        "plan for another machine": lambda: main(["plan", "--machine", "M1 Pro 16GB", *demo, *lang]),
        "plan that does not fit": lambda: main(["plan", "--machine", "M1 8GB", *unreachable, *lang]),
        "table": lambda: show_tables(*tables(), Console(highlight=False)),
        "runs": lambda: main(["runs", *out]),
        "runs show": lambda: main(["runs", "show", TWO, *out]),
        "runs diff": lambda: main(["runs", "diff", ONE, TWO, *out]),
        "compare": lambda: show_comparison(comparison("tuned"), Console(highlight=False)),
        "error": lambda: main(["runs", "show", "nothing", *out]),
    }


NAMES = list(displays(Path(), "en"))


def output_of(name: str, folder: Path, language: str, capsys: Output) -> str:
    """Return the output of the display `name` in `language`, stdout before stderr."""
    set_language(language)
    capsys.readouterr()
    displays(folder, language)[name]()
    output = capsys.readouterr()
    return output.out + output.err


@pytest.fixture
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The width of the terminal in columns, which rich reads from the environment."""
    for name, value in {"COLUMNS": request.param, "FORCE_COLOR": "1", "TTY_INTERACTIVE": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("NO_COLOR", raising=False)
    return int(request.param)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", NAMES)
def test_a_pipe_gets_lines_without_control_characters_or_spaces_at_their_ends(
    name: str, language: str, folder: Path, capsys: Output
) -> None:
    text = output_of(name, folder, language, capsys)
    assert text.strip()
    assert not CONTROL.search(text)
    assert not [line for line in text.splitlines() if line != line.rstrip()]
    most = 250 if name == "machines" else 150  # one line for each chip of the catalog
    assert len(text.splitlines()) < most, "a pipe gets a few progress lines only"


@pytest.mark.parametrize("terminal", [80, 140], indirect=True)
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", NAMES)
def test_a_terminal_gets_no_line_but_a_command_that_is_wider(
    name: str, language: str, terminal: int, folder: Path, capsys: Output
) -> None:
    text = output_of(name, folder, language, capsys)
    lines = re.split(r"[\r\n]+", CURSOR.sub("\n", COLOUR.sub("", text)))
    assert not [line for line in lines if cell_len(line.rstrip()) > terminal and not COMMAND.search(line)]


@pytest.mark.parametrize("terminal", [80], indirect=True)
@pytest.mark.parametrize("name", NAMES)
def test_no_colour_is_written_where_none_is_wanted(
    name: str, terminal: int, folder: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    codes = COLOUR.findall(output_of(name, folder, "en", capsys))
    assert not [code for code in codes if re.search(r"\[(?:\d*;)*[34]\d", code)]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "compare"])  # its answers are Chinese
def test_english_output_has_no_chinese(name: str, folder: Path, capsys: Output) -> None:
    assert not CJK.search(output_of(name, folder, "en", capsys))


@pytest.mark.parametrize("name", NAMES)
def test_chinese_output_is_chinese(name: str, folder: Path, capsys: Output) -> None:
    assert CJK.search(output_of(name, folder, "zh", capsys))
