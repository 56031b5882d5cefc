"""Can every command that the docs show be typed? Parsed by the program's own parsers, never run; and do links lead somewhere?"""

import re
import shlex
from pathlib import Path
from typing import Any, NoReturn

import pytest
from support.doc_commands import PAGES, ROOT, arguments, commands

from lorafit.cli import commands as faces
from lorafit.cli import parse as command_line
from lorafit.cli import plan, runs, transfer
from lorafit.cli.app import COMMANDS
from lorafit.registry import load

# Not checked: other people's programs, and ours without flags of their own.
NOT_CHECKED = {"brew", "git", "hf", "ioreg", "make", "notifyutil", "pip", "pmset", "sky", "source", "sudo", "sysctl", "tensorboard",
               "cd", "./run_tests.sh", "./sagemaker/send.sh"}  # fmt: skip
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#[^)]*)?\)")


class Parsed(Exception):
    """A command's flags were understood; it goes no further."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every face stops after its flags are parsed; runs and YAML files that the docs invent are empty."""
    real = command_line.parse

    def parse(*args: Any, **kwargs: Any) -> NoReturn:
        real(*args, **kwargs)
        raise Parsed

    for module in (command_line, faces, transfer, plan, runs):
        monkeypatch.setattr(module, "parse", parse)
    monkeypatch.setattr(command_line, "unpack_resumed_bundle", lambda argv: argv)
    monkeypatch.setattr(command_line, "read_yaml", lambda path: {})
    monkeypatch.setattr(command_line, "run_settings", lambda name, output_dir: {})


@pytest.mark.usefixtures("parse_only")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_the_docs_is_understood(page: Path) -> None:
    for words in commands(page):
        given = arguments(words)
        if words[0] in NOT_CHECKED:
            continue
        assert given is not None, f"{page.name}: neither ours nor listed as not checked: {shlex.join(words)}"
        assert given[0] in COMMANDS, f"{page.name}: there is no such command: {shlex.join(words)}"
        try:
            load(COMMANDS[given[0]].entry)(given[1:])
        except Parsed:
            continue
        pytest.fail(f"{page.name}: not parsed by command_line.parse: {shlex.join(words)}")


@pytest.mark.usefixtures("parse_only")
def test_a_wrong_flag_in_the_docs_would_be_noticed() -> None:
    with pytest.raises((SystemExit, Exception)) as raised:
        load(COMMANDS["train"].entry)(["--learning_rat", "1e-4"])
    assert not isinstance(raised.value, Parsed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_of_the_repository_lead_to_them(page: Path) -> None:
    for target in LINK.findall(page.read_text("utf-8")):
        assert not target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_guide_says_the_same_in_both_languages() -> None:
    english, chinese = (ROOT / "docs/macos.md", ROOT / "docs/macos.zh-CN.md")
    assert list(commands(english)) == list(commands(chinese))
    shapes = [[line.split(" ")[0] for line in page.read_text("utf-8").splitlines() if re.match(r"#+ ", line)]
              for page in (english, chinese)]  # fmt: skip
    assert shapes[0] == shapes[1]
    figures = [
        re.findall(r"^\| (?:\d+ GB|M\d[^|]*) \|.*$", page.read_text("utf-8"), re.M) for page in (english, chinese)
    ]
    assert figures[0] == figures[1]
