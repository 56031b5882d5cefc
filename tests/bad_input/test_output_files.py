"""Output goes where the user says: into devices, FIFOs and stdout, through links, and never over what is not plain."""

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from support.fake_runs import ONE, make_run
from support.paths import ROOT

from lorafit.cli.app import main
from lorafit.errors import DiskError
from lorafit.evaluation.chat import Chat
from lorafit.paths import check_for_user, open_for_user, write_for_user
from lorafit.reporters.terminal import chat as terminal_chat
from lorafit.reporters.terminal.answers import write_answers
from lorafit.reporters.terminal.errors import show_error

Output = pytest.CaptureFixture[str]
ZIP, PNG, HTML = b"PK", b"\x89PNG", b"<!DOCTYPE html>"
FLAG = "--output"


def answered(path: str) -> int:
    try:
        check_for_user(Path(path), FLAG)
        write_answers(iter([{"question": "q", "answer": "a"}]), 1, Path(path), Console(stderr=True))
    except DiskError as error:
        show_error(error, Console(stderr=True))
        return 2
    return 0


@pytest.fixture(params=["data", "bundle", "plot", "answers"])
def write(request: pytest.FixtureRequest, tmp_path: Path, model: Path, data: Path) -> Callable[[str], int]:
    """A function that lets a command write its file to a path, and returns its exit code."""
    runs = ["--output_dir", str(tmp_path / "output")]
    if request.param in ("bundle", "plot"):
        make_run(tmp_path / "output", ONE)
    if request.param == "plot":
        pytest.importorskip("matplotlib")
    commands: dict[str, Callable[[str], int]] = {
        "data": lambda path: main(["data", str(data), "--model_name", str(model), "-o", path]),
        "bundle": lambda path: main(["bundle", "--model_name", str(model), "--dataset_name", str(data), "-o", path]),
        "plot": lambda path: main(["runs", "show", ONE, "--plot", path, *runs]),
        "answers": answered,
    }
    return commands[request.param]


@pytest.fixture
def suffix(request: pytest.FixtureRequest) -> str:
    """A suffix that the writer of the test accepts."""
    return {"bundle": ".zip", "plot": ".png"}.get(request.node.callspec.params["write"], ".html")


def good(content: bytes) -> bool:
    return content.startswith((ZIP, PNG, HTML, b'{"question"')) and len(content) > 20


def test_a_device_is_written_into_and_stays(write: Callable[[str], int], tmp_path: Path) -> None:
    node, link = tmp_path / "null", tmp_path / "link"
    try:
        os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        node.open("wb").close()
    except OSError as error:
        pytest.skip(f"no device can be made here: {error}")
    node.chmod(0o606)
    link.symlink_to(node)
    for path in (node, link):
        assert write(str(path)) == 0
    assert stat.S_ISCHR(node.stat().st_mode)
    assert stat.S_IMODE(node.stat().st_mode) == 0o606
    assert link.is_symlink()


def test_a_fifo_gets_the_content(write: Callable[[str], int], tmp_path: Path) -> None:
    fifo, got = tmp_path / "fifo", list[bytes]()
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    assert write(str(fifo)) == 0
    reader.join(20)
    assert good(got[0])
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_a_dash_is_stdout_and_words_go_to_stderr(
    write: Callable[[str], int], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert write("-") == 0
    assert good(capfdbinary.readouterr().out)
    assert not Path("-").exists()


def test_a_link_is_followed_and_mode_and_owner_stay(write: Callable[[str], int], suffix: str, tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    link, real = tmp_path / f"link{suffix}", folder / f"real{suffix}"
    link.symlink_to(real)
    assert write(str(link)) == 0
    real.write_bytes(b"old")
    real.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(real, 4321, 4321)
    owner = real.stat().st_uid
    assert write(str(link)) == 0
    assert link.is_symlink()
    assert good(real.read_bytes())
    assert (stat.S_IMODE(real.stat().st_mode), real.stat().st_uid) == (0o604, owner)
    assert [path.name for path in folder.iterdir()] == [real.name]


def test_a_folder_is_refused_with_the_flag_that_was_given(
    write: Callable[[str], int], suffix: str, tmp_path: Path, capsys: Output
) -> None:
    folder = tmp_path / f"folder{suffix}"
    folder.mkdir()
    assert write(str(folder)) == 2
    text = capsys.readouterr().err
    assert f"Give a file name with {'--plot' if suffix == '.png' else FLAG}." in text
    assert not list(folder.iterdir())


def test_nothing_is_left_and_the_old_file_stays_if_writing_fails(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        with open_for_user(path, FLAG) as file:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    old, new = tmp_path / "old.html", tmp_path / "new.html"
    old.write_bytes(b"whole")
    for path in (old, new):
        with pytest.raises(DiskError, match="The disk is full") as caught:
            fail(path)
        assert FLAG in str(caught.value.fix)
    assert [path.name for path in tmp_path.iterdir()] == ["old.html"]
    assert old.read_bytes() == b"whole"


def test_a_killed_writer_leaves_nothing_after_the_next_one(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from lorafit.paths import open_for_user\n"
        "with open_for_user(pathlib.Path(sys.argv[1]), '--output') as file: file.write(b'x'); file.flush(); os._exit(9)"
    )
    path = tmp_path / "page.html"
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False)
    assert len(list(tmp_path.iterdir())) == 1
    write_for_user(path, "whole", FLAG)
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


def test_a_read_only_file_is_refused_before_the_work(tmp_path: Path, plain_user: Callable[[Path], None]) -> None:
    path = tmp_path / "a.html"
    path.write_text("mine")
    path.chmod(0o444)
    plain_user(tmp_path)
    with pytest.raises(DiskError, match="Permission denied"):
        check_for_user(path, FLAG)
    with pytest.raises(DiskError, match="Permission denied"):
        write_for_user(path, "yours", FLAG)
    assert path.read_text() == "mine"


def test_a_writable_file_in_a_folder_that_is_not_is_written_in_its_place(
    tmp_path: Path, plain_user: Callable[[Path], None]
) -> None:
    path = tmp_path / "a.html"
    path.write_text("old")
    path.chmod(0o666)
    tmp_path.chmod(0o755)
    node = path.stat().st_ino
    plain_user(tmp_path)
    check_for_user(path, FLAG)
    write_for_user(path, "new", FLAG)
    assert (path.read_text(), path.stat().st_ino) == ("new", node)


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000, "loop", "loop/x"])
def test_a_name_that_cannot_be_is_an_error_with_the_flag(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    path = tmp_path / name
    for write_or_check in (lambda: check_for_user(path, FLAG), lambda: write_for_user(path, "x", FLAG)):
        with pytest.raises(DiskError) as caught:
            write_or_check()
        assert FLAG in str(caught.value.fix)


class _Talk(Chat):
    """A chat whose transcript is given."""

    def __init__(self) -> None:
        self.has_adapter = False

    def transcript(self) -> list:  # type: ignore[type-arg]
        return []


def test_save_appends_and_refuses_with_words(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("old\n")
    path.chmod(0o640)
    for name in (str(path), str(path), "-", "a\0b", str(tmp_path), "~nouser/x"):
        terminal_chat.COMMANDS["/save"](_Talk(), name)
    out = capsys.readouterr().out
    assert path.read_text() == "old\n" + '{"messages": []}\n' * 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert out.count("Not saved") == 3
    assert out.count('{"messages": []}') == 1
    assert "U+0000" in out
