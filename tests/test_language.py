"""Every text for users follows the glossary: words, punctuation and spacing, in both languages."""

import re
import shlex
from collections.abc import Iterator

import pytest
from babel.messages.pofile import read_po
from support.paths import ROOT

from lorafit.cli.app import COMMANDS, main
from lorafit.cli.completion import SETTINGS
from lorafit.cli.runs import ALIASES, SUBCOMMANDS

# Words that the glossary replaces. Each pattern is searched without regard to case.
ENGLISH = (
    r"held[- ]out", r"\bmend", r"\bgone on\b", r"\bgo(es)? on\b", r"\bgoing on\b", r"\bwhat came of\b", r"\bmoments\b",
    r"\bnear copies\b", r"quantis", r"tokenis", r"initialis", r"\bprocessor\b", r"\bbegun\b", r"\bbegin", r"\bput back\b",
    r"\bcomputes? (its|their) activations twice\b", r"\btuned from\b", r"\bcolour", r"\bcatalogue\b", r"\bwanted\b",
    r"\bhub id\b", r"\bmemory ran out\b", r"\bspot machine", r"\bcopies of\b", r"\brehears", r"\bbroke off\b",
)  # fmt: skip
CHINESE = (
    "弃用", "只读", "动量", "留出", "看护", "运行记录", "接着跑", "您", "基础模型", "任务包", "批大小", "有效批量", "站点", "笔记本",
    "目标占比", "数值格式", "杀掉", "不设门槛", "重算", "微批(?!次)", "恢复训练", "训练计划", "各步",
)  # fmt: skip
FOREIGN_FLAGS = {"upgrade", "secret", "nproc_per_node", "no_"}  # of other programs, and --no_FLAG
QUESTION = re.compile(r"^(Which|What|How|Who|Where)\b.*\?$")
MARKED = re.compile(r"`[^`]*`|\{[^}]*\}|https?://\S+|--\w+|\*[^*]+\*")  # code, placeholders and names are not prose
HAN = "[\u4e00-\u9fff]"
HALF_WIDTH = re.compile(f"{HAN}\\s*[,;:?!()]|[,;:?!(]\\s*{HAN}")
NO_SPACE = re.compile(f"{HAN}[A-Za-z0-9]|[A-Za-z0-9%]{HAN}")
SPACE_BESIDE_MARK = re.compile(r"[，。：；（）、] |\s[，。：；（）、]")


def texts() -> Iterator[tuple[str, str]]:
    """Yield each English text with its Chinese translation."""
    with (ROOT / "lorafit/locale/zh_CN/LC_MESSAGES/lorafit.po").open("rb") as file:
        yield from ((str(message.id), str(message.string)) for message in read_po(file) if message.id)


@pytest.mark.parametrize("word", ENGLISH)
def test_no_english_text_has_a_word_that_the_glossary_replaces(word: str) -> None:
    assert not [en for en, _zh in texts() if re.search(word, MARKED.sub("", en), re.IGNORECASE)]


@pytest.mark.parametrize("word", CHINESE)
def test_no_chinese_text_has_a_word_that_the_glossary_replaces(word: str) -> None:
    assert not [zh for _en, zh in texts() if re.search(word, MARKED.sub("", zh))]


def test_no_text_shows_pythons_none() -> None:
    assert not [en for en, zh in texts() if re.search(r"\bNone\b", MARKED.sub("", en + zh))]


def test_no_text_is_a_question_where_a_statement_is_due() -> None:
    assert not [en for en, _zh in texts() if QUESTION.match(en)]


@pytest.mark.parametrize("fault", [HALF_WIDTH, NO_SPACE, SPACE_BESIDE_MARK], ids=["half-width", "no space", "space"])
def test_chinese_punctuation_is_full_width_and_latin_words_stand_apart(fault: re.Pattern[str]) -> None:
    prose = re.compile(r"`[^`]*`|https?://\S+|--\w+|\{[^}]*\}")
    assert not [
        zh for _en, zh in texts() if fault.search(zh.strip() if fault is SPACE_BESIDE_MARK else prose.sub("", zh))
    ]


def test_every_command_and_flag_in_a_text_exists() -> None:
    flags = {name for kind in SETTINGS.values() for name in kind.model_fields}
    known = flags | {f"no_{name}" for name in flags} | {"help", "version", "print_completion", "FLAG", "x"}
    wrong = []
    for pair in texts():
        for text in pair:
            wrong += [
                f"--{flag}: {text}" for flag in re.findall(r"--([a-z_0-9]+)", text) if flag not in known | FOREIGN_FLAGS
            ]
            for verb, sub in re.findall(r"`lorafit ([a-z]+)(?: ([a-z|]+))?", text):
                if verb not in COMMANDS or (verb == "runs" and sub and sub not in {**SUBCOMMANDS, **ALIASES}):
                    wrong.append(f"lorafit {verb} {sub}: {text}")
    assert not wrong


def test_every_command_in_a_text_runs_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        command
        for pair in texts()
        for text in pair
        for command in re.findall(r"`(lorafit [a-z][^`{|…]*)`", text)
        if command.isascii() and not command.split()[-1].startswith("--")  # a flag alone is named, not run
    }
    assert len(found) > 5
    wrong = [command for command in sorted(found) if main([*shlex.split(command)[1:], "--help", "--lang", "en"]) != 0]
    assert not wrong, capsys.readouterr().err
