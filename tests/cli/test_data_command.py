"""Tests of the report of `lorafit data`: on a terminal, in a pipe, and as a page that runs and loads nothing."""

import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from lorafit import api
from lorafit.cli.app import main
from lorafit.cli.flags import split_words
from lorafit.data.findings import DataReport
from lorafit.data.report_request import DataRequest
from lorafit.messages import set_language
from lorafit.paths import write_for_user
from lorafit.reporters.html.data import data_page
from lorafit.reporters.terminal.data import show_data

Output = pytest.CaptureFixture[str]
SCRIPT = "</pre><script>document.title = 'it ran'</script><img src=https://example.com/x onerror=alert(1)>"


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data file with valid and invalid rows, two formats, duplicates, markup, escape codes and a long answer."""
    rows: list[Any] = [
        {"question": f"第{i}个问题：房东不退押金怎么办？", "answer": f"可以起诉{i}。"} for i in range(20)
    ]
    rows += [rows[0], {"instruction": SCRIPT, "output": SCRIPT}, {"question": "问", "answer": ""}, {SCRIPT: "\x1b[31m"}]
    rows += [
        {"instruction": "零宽\u200b字", "output": "\x1b[31m红\x00"},
        {"instruction": "长", "output": "很长的回答。" * 200},
    ]
    path = tmp_path_factory.mktemp("data") / "rows & more.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="module")
def report(file: Path, demo_folder: Path) -> DataReport:
    return api.data_report(DataRequest.model_validate({"files": [str(file)], "model_name": str(demo_folder)}))


def printed(report: DataReport, **settings: Any) -> str:
    """Return the text of `report` on a console of 80 columns with `settings`."""
    console = Console(file=io.StringIO(), width=80, highlight=False, **settings)
    show_data(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class Page(HTMLParser):
    """The tags and attributes of a page, all its text, and the text in each `mark`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.marked: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.marked += [""] * (tag == "mark")

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags and self.tags[-1] == "mark":
            self.marked[-1] += data


# the terminal


def test_in_a_pipe_the_report_is_plain_and_fits_80_columns(report: DataReport) -> None:
    text = printed(report)
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", text)
    head = text.partition("Shortest samples")[0]
    assert max(cell_len(line) for line in head.splitlines()) <= 80
    assert "question_answer 21, alpaca 3" in text
    assert re.search(r"rejected +2 +7\.7% of the rows", text)
    assert re.search(r"exact duplicates +1 ", text)
    assert re.search(r"without an answer +1 ", text)
    assert re.search(r"truncated rows +1 ", text)
    assert "line 23: {" in text
    assert re.search(r"U\+200B zero width space +1 +line 25", text)
    assert "⟦可以起诉0。<|im_end|>⟧" in text


def test_on_a_terminal_targets_are_coloured_and_the_data_control_nothing(report: DataReport) -> None:
    text = printed(report, force_terminal=True, color_system="standard")
    assert "\x1b[1;32m可以起诉" in text
    assert "⟦" not in text
    assert not re.search(r"\x1b(?!\[[\d;]*m)|\x1b\[31m红|\x00", text)


def test_the_command_reports_several_files_and_flags_in_any_order(
    file: Path, demo_folder: Path, capsys: Output
) -> None:
    command = [
        "data",
        str(file),
        "--max_length",
        "256",
        str(file),
        "--model-name",
        str(demo_folder),
        "--max_samples=30",
    ]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "max_length 256" in text
    assert re.search(r"rows +32 ", text)


def test_a_field_map_a_context_and_train_on_last_work_as_in_training(tmp_path: Path, demo_folder: Path) -> None:
    turns = [("user", "问一"), ("assistant", "答一"), ("user", "问二"), ("assistant", "答二")]
    row = {"talk": [{"role": role, "content": text} for role, text in turns], "laws": ["第一条"]}
    (tmp_path / "talks.jsonl").write_text(json.dumps(row), "utf-8")
    settings = {"field_map": "talk=messages", "context_field": "laws", "train_on": "last", "val_size": 0}
    request = {"files": [str(tmp_path / "talks.jsonl")], "model_name": str(demo_folder), **settings}
    pieces = api.data_report(DataRequest.model_validate(request)).samples["shortest"][0].pieces
    assert [text for text, is_target in pieces if is_target] == ["答二<|im_end|>"]
    assert "第一条\n\n问一" in pieces[0][0]


def test_words_and_flags_are_told_apart() -> None:
    argv = ["a", "--max_length", "9", "b", "--seed=1", "--trust_remote_code", "c", "--help"]
    words, flags = split_words(DataRequest, argv)
    assert words == ["a", "b", "c"]
    assert flags == ["--max_length", "9", "--seed=1", "--trust_remote_code", "--help"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "No data given."),
        (["no-such-file.jsonl"], "no-such-file.jsonl"),
        (["demo", "--max_lenght", "9"], "--max_length"),
        (["demo", "-o", "."], "cannot replace a folder"),
        (["demo", "-o", "/proc/no/report.html"], "--output"),
    ],
)
def test_wrong_arguments_are_reported_before_anything_is_read(arguments: list[str], words: str, capsys: Output) -> None:
    assert main(["data", *arguments]) == 2
    output = capsys.readouterr()
    assert words in output.err
    assert output.out == ""


def test_help_names_every_flag(capsys: Output) -> None:
    assert main(["data", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in DataRequest.model_fields if name != "files")


# the page


def test_the_page_is_written_whole_and_the_figures_are_shown(
    file: Path, demo_folder: Path, tmp_path: Path, capsys: Output
) -> None:
    path = tmp_path / "new folder" / "report.html"
    assert main(["data", str(file), "-o", str(path), "--model_name", str(demo_folder)]) == 0
    text = capsys.readouterr().out
    assert f"✓ report: {path}" in text
    assert "rejected" in text
    assert [found.name for found in path.parent.iterdir()] == ["report.html"]
    assert path.read_text("utf-8").rstrip().endswith("</html>")


def test_a_page_holds_no_script_and_asks_for_nothing(report: DataReport) -> None:
    read = Page(data_page(report))
    assert not {"script", "img", "link", "iframe", "object", "base", "form"} & set(read.tags)
    assert not [name for name, _value in read.attributes if name.startswith("on") or name in ("src", "href", "style")]
    assert read.text.count("<script>document.title = 'it ran'</script>") >= 2
    assert "url(" not in data_page(report)
    assert "@import" not in data_page(report)


def test_what_opens_in_a_page_is_closed(report: DataReport) -> None:
    open_tags: list[str] = []
    for tag in Page(data_page(report)).tags:
        if tag.startswith("/"):
            assert open_tags.pop() == tag[1:]
        elif tag != "meta":
            open_tags.append(tag)
    assert not open_tags


def test_a_page_tells_what_the_report_holds(report: DataReport) -> None:
    read = Page(data_page(report))
    samples = [sample for group in report.samples.values() for sample in group]
    targets = [text for sample in samples for text, is_target in sample.pieces if is_target]
    assert read.marked[1:] == targets  # the first mark is the legend
    assert read.tags.count("rect") == len(report.lengths.rows if report.lengths else [])
    assert "rows & more.jsonl" in read.text
    assert "⟨U+001B⟩[31m红⟨U+0000⟩" in read.text + "".join(targets)


def test_a_page_of_bad_rows_only_is_a_page(tmp_path: Path, demo_folder: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n' * 3)
    request = DataRequest.model_validate({"files": [str(tmp_path / "bad.jsonl")], "model_name": str(demo_folder)})
    report = api.data_report(request)
    assert "keys found: a;" in Page(data_page(report)).text
    assert "rejected" in printed(report)


def test_a_page_speaks_chinese(report: DataReport) -> None:
    set_language("zh")
    assert '<html lang="zh-CN">' in data_page(report)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_in_a_browser_nothing_of_the_data_runs(report: DataReport, tmp_path: Path) -> None:
    write_for_user(tmp_path / "report.html", data_page(report), "--output")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = ["chromium", *flags, "--dump-dom", (tmp_path / "report.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "<title>rows &amp; more.jsonl</title>" in done.stdout
    assert "<script>" not in done.stdout
