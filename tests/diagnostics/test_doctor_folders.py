"""Does the doctor see where models and runs go, keep secrets, and stay within the terminal?"""

import http.server
import io
import re
import socket
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


# places


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


def test_a_hub_that_says_nothing_is_told_of_and_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "HUB_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        finding = folders.hub_finding()
    assert finding.mark == "poor"
    assert "--hf_endpoint" in (finding.fix or "")


def test_folders_tell_free_disk_and_little_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(folders.os, "access", lambda _path, _mode: False)
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


# how it looks


@pytest.mark.parametrize("width", [80, 140])
def test_on_a_terminal_no_line_but_a_command_is_longer_than_it_is_wide(width: int) -> None:
    long = "a sentence of many words " * 10
    command = "python -m pip install " + "x" * 200
    findings = [Finding("machine", "处理器", long), Finding("packages", "torch", long, "bad", long, command)]
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, force_interactive=True, color_system=None)
    show_report(Report(mac(M1), findings, {}, None), console)
    lines = out.getvalue().splitlines()
    assert sum(command in line for line in lines) == 1
    assert all(len(line.rstrip()) <= width for line in lines if command not in line)
