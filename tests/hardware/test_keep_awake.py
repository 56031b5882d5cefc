"""The machine is kept awake while it trains, and only then."""

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from lorafit.hardware import keep_awake


def test_macos_runs_caffeinate_for_our_process() -> None:
    assert keep_awake.command("Darwin", 123) == ["caffeinate", "-i", "-w", "123"]


def test_linux_holds_a_lock_with_a_child_that_ends_when_its_input_closes() -> None:
    cmd = ["systemd-inhibit", "--what=idle:sleep", "--who=lorafit", "--why=training", "--mode=block", "cat"]
    assert keep_awake.command("Linux", 123) == cmd


def test_elsewhere_nothing_is_run() -> None:
    assert keep_awake.command("Windows", 123) is None


def write_tool(folder: Path, name: str, text: str) -> None:
    """Write the shell script `text` as the executable `name`."""
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.skipif(sys.platform != "linux", reason="puts a stand-in for systemd-inhibit on the PATH")
def test_the_tool_lives_as_long_as_the_context_in_a_session_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tool(tmp_path, "systemd-inhibit", f'echo $$ > "{tmp_path}/pid"; exec cat')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with keep_awake.keep_awake():
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        pid = int((tmp_path / "pid").read_text())
        assert os.getsid(pid) != os.getsid(0)
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("tool", [None, "exit 1"])
def test_a_missing_or_failing_tool_is_silently_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tool: str | None
) -> None:
    for name in ("systemd-inhibit", "caffeinate"):
        if tool:
            write_tool(tmp_path, name, f"echo no bus >&2; {tool}")
    monkeypatch.setenv("PATH", str(tmp_path))
    with keep_awake.keep_awake():
        pass
    assert capfd.readouterr() == ("", "")


def test_the_context_ends_the_tool_when_training_fails() -> None:
    before = set(psutil.Process().children())
    with pytest.raises(ValueError, match="diverged"), keep_awake.keep_awake():
        raise ValueError("diverged")
    assert set(psutil.Process().children()) <= before
