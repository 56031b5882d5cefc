"""Every command in the docs is valid. The commands are parsed and not run."""

import re
import shlex
from pathlib import Path

import pytest
from support.doc_commands import PAGES, ROOT, arguments, commands

from lorafit.cli.app import COMMANDS, flag_value, main
from lorafit.cli.completion import SETTINGS
from lorafit.cli.flags import split_flags
from lorafit.cli.parse import fill_in_latest, parse
from lorafit.config import TrainConfig
from lorafit.errors import ConfigError

Output = pytest.CaptureFixture[str]

# Programs that are not checked: those of others, and scripts of this repository without flags of their own.
NOT_CHECKED = {"brew", "docker", "git", "hf", "ioreg", "make", "mlx_lm.chat", "notifyutil", "ollama", "pip", "pmset", "sky", "source", "sudo", "sysctl", "tensorboard",
               "cd", "./run_tests.sh", "./sagemaker/send.sh"}  # fmt: skip


def parse_flags(argv: list[str]) -> None:
    """Parse the flags of the command line `argv` completely. Raise ConfigError for a wrong flag or value."""
    kind = SETTINGS.get(" ".join(argv[:2]), SETTINGS[argv[0]])
    _words, own, others = split_flags(kind, fill_in_latest(argv[1:]))
    parse(kind, own, argv[0])
    parse(TrainConfig, others, "train")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_in_the_docs_is_understood(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        given = arguments(words)
        if words[0] in NOT_CHECKED:
            continue
        assert given is not None, f"{page.name}: neither ours nor listed as not checked: {shlex.join(words)}"
        assert given[0] in COMMANDS, f"{page.name}: there is no such command: {shlex.join(words)}"
        if settings := flag_value(given, "config"):
            Path(settings).write_text("seed: 1\n", "utf-8")
        # With --help a command checks the flags before it, and then prints its help and does nothing else.
        code = main([*given, "--help"])
        shown = capsys.readouterr()
        assert code == 0, f"{page.name}: {shlex.join(words)}: {shown.err}"
        assert f"usage: lorafit {given[0]}" in shown.out, f"{page.name}: flags not parsed: {shlex.join(words)}"
        parse_flags(given)


def test_a_wrong_flag_in_the_docs_would_be_noticed() -> None:
    assert main(["train", "--learning_rat", "1e-4", "--help"]) == 2
    with pytest.raises(ConfigError):
        parse_flags(["train", "--learning_rat", "1e-4"])


def test_the_guide_says_the_same_in_both_languages() -> None:
    english, chinese = (ROOT / "docs/macos.md", ROOT / "docs/zh/macos.md")
    assert list(commands(english)) == list(commands(chinese))
    shapes = [[line.split(" ")[0] for line in page.read_text("utf-8").splitlines() if re.match(r"#+ ", line)]
              for page in (english, chinese)]  # fmt: skip
    assert shapes[0] == shapes[1]
    figures = [
        re.findall(r"^\| (?:\d+ GB|M\d[^|]*) \|.*$", page.read_text("utf-8"), re.M) for page in (english, chinese)
    ]
    assert figures[0] == figures[1]
