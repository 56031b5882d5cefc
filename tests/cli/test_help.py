"""Tests of the help of every command: complete, no wider than the terminal, and in one language."""

import re

import pytest
from rich.cells import cell_len

from lorafit.cli.app import COMMANDS, main
from lorafit.cli.completion import SETTINGS
from lorafit.cli.flags import is_word
from lorafit.cli.help import WORDS
from lorafit.messages import set_language, translate

Output = pytest.CaptureFixture[str]

CJK = re.compile(r"[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]")
ENGLISH = re.compile(
    r"\b(?:usage|flags?|default|TEXT)\b|[a-z]{2,} [a-z]{2,}"
)  # a heading or label, or part of a sentence
NAMES = re.compile(r"`[^`]*`|--\w+|\w+(?:\|\w+)+|lorafit [a-z ]+|Hugging Face")  # the same in every language


def help_of(command: str, language: str, capsys: Output) -> str:
    """Return the help of `command` ("": of the program) in `language`."""
    capsys.readouterr()
    assert main([*command.split(), "--help", "--lang", language]) == 0
    return capsys.readouterr().out


@pytest.fixture(params=[80, 140])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The width of the terminal in columns."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


@pytest.mark.parametrize("command", ["", *SETTINGS])
def test_chinese_help_has_no_english_headings_and_labels(command: str, capsys: Output) -> None:
    text = help_of(command, "zh", capsys)
    assert CJK.search(text)
    assert not ENGLISH.findall(NAMES.sub("", text))


@pytest.mark.parametrize("command", ["", *SETTINGS])
def test_english_help_has_no_chinese(command: str, capsys: Output) -> None:
    assert not CJK.search(help_of(command, "en", capsys))


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("command", SETTINGS)
def test_every_flag_stands_with_its_meaning(command: str, language: str, capsys: Output) -> None:
    text = "".join(help_of(command, language, capsys).split())
    set_language(language)
    for name, field in SETTINGS[command].model_fields.items():
        shown = WORDS.get(name, name.upper()) if is_word(field) else f"--{name}"
        assert "".join(shown.split()) in text
        assert "".join(translate(field.description or "").split()) in text


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("command", SETTINGS)
def test_no_line_is_wider_than_the_terminal(command: str, language: str, width: int, capsys: Output) -> None:
    lines = help_of(command, language, capsys).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert not [line for line in lines if line != line.rstrip()]


def test_defaults_in_the_help_are_those_of_the_given_preset(capsys: Output) -> None:
    assert main(["train", "--demo", "--help"]) == 0
    assert re.search(r"--lora_r N .* Default: 16\.", capsys.readouterr().out)


def test_the_overview_tells_what_each_command_does(capsys: Output) -> None:
    for language in ("en", "zh"):
        text = help_of("", language, capsys)
        assert all(command.help() in text for command in COMMANDS.values())
