"""`lorafit doctor`: folders, the connection to the hub, removal of secrets, and the width of its output."""

import http.server
import io
import os
import re
import threading
from pathlib import Path

import pytest
from rich.console import Console
from support.fake_secrets import TOKEN
from support.machine_outputs import M1, mac

from lorafit.diagnostics import folders
from lorafit.diagnostics.finding import Finding, Report
from lorafit.diagnostics.redact import scrub
from lorafit.reporters.terminal.doctor import show_report

Output = pytest.CaptureFixture[str]


# folders and hub


class Answering(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_words: object) -> None:
        pass


def test_a_hub_that_answers_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    assert folders.hub_finding().mark == "good"
    server.shutdown()


def test_folders_have_their_free_disk_space_and_a_warning_if_it_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"HF_HUB_CACHE": str(tmp_path / "models")}
    runs, _cache, models = folders.folder_findings(tmp_path / "new" / "output", environ)
    assert str(tmp_path / "new" / "output") in runs.found
    assert re.search(r"\([\d.]+ [KMG]iB free\)", runs.found)
    assert str(tmp_path / "models") in models.found
    monkeypatch.setattr(folders, "LITTLE_BYTES", 2**62)
    assert [f.mark for f in folders.folder_findings(tmp_path, environ)] == ["poor"] * 3


def test_a_folder_that_may_not_be_written_is_bad_for_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)  # root may write everywhere
    marks = [finding.mark for finding in folders.folder_findings(tmp_path, {})]
    assert marks == ["bad", "poor", "poor"]


# secrets


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"token {TOKEN}.", "token ***."),
        ("https://bob:secret1@mirror.example/x", "https://***@mirror.example/x"),
        ("/home/carol/runs and /Users/dave/Library", "~/runs and ~/Library"),
        ("my-own-value-77 here", "*** here"),
        ("--hf_endpoint https://hf-mirror.com", "--hf_endpoint https://hf-mirror.com"),
        ("/data/homes/x stays, 1 too", "/data/homes/x stays, 1 too"),
    ],
)
def test_secrets_are_taken_out(text: str, clean: str) -> None:
    assert scrub(text, {"MY_API_KEY": "my-own-value-77", "SHORT_TOKEN": "1", "PATH": "here"}) == clean


def test_home_and_user_are_taken_out_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "erin"))
    monkeypatch.setenv("LOGNAME", "erin")
    assert scrub(f"{tmp_path}/erin/x, {tmp_path}/erin2", {}) == f"~/x, {tmp_path}/erin2"
    assert scrub("/data/erin/output", {}) == "/data/***/output"


# the output


@pytest.mark.parametrize("width", [80, 140])
def test_on_a_terminal_no_line_is_wider_than_it_except_a_command(width: int) -> None:
    long = "a sentence of many words " * 10
    command = "python -m pip install " + "x" * 200
    findings = [Finding("machine", "处理器", long), Finding("packages", "torch", long, "bad", long, command)]
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, force_interactive=True, color_system=None)
    show_report(Report(mac(M1), findings, {}, None), console)
    lines = out.getvalue().splitlines()
    assert sum(command in line for line in lines) == 1
    assert all(len(line.rstrip()) <= width for line in lines if command not in line)
