"""The READMEs are short, and both languages show the same commands, figures and sections."""

import re
from pathlib import Path

import pytest
from support.doc_commands import commands
from support.paths import ROOT

ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
MOST_WORDS = 1100  # as `wc -w` counts: code, tables and their bars too
MOST_CHARACTERS, MOST_LATIN_WORDS = 2200, 250  # outside of code
CODE = re.compile(r"^ *```.*?^ *```|`[^`\n]*`", re.M | re.S)
TEST_COMMAND = "./run_tests.sh"  # what .ci/run executes


def text_of(page: Path) -> str:
    """Return the text of `page` without code and without the targets of links."""
    return re.sub(r"\]\([^)\s]*\)", "]", CODE.sub("", page.read_text("utf-8")))


def shape(page: Path) -> list[str]:
    """Return the marks of headings, and the number of columns of each row of a table, in order."""
    rows = [re.match(r"#+(?= )|\|", line) for line in text_of(page).splitlines()]
    return [f"{row.string.count('|')} bars" if row[0] == "|" else row[0] for row in rows if row]


def test_the_english_readme_is_short() -> None:
    assert len(ENGLISH.read_text("utf-8").split()) < MOST_WORDS


def test_the_chinese_readme_is_short_and_chinese() -> None:
    text = text_of(CHINESE)
    assert len(re.findall(r"[\u3400-\u9fff]", text)) <= MOST_CHARACTERS
    assert len(re.findall(r"[A-Za-z][\w.-]*", text)) <= MOST_LATIN_WORDS


def test_both_readmes_show_the_same_commands_sections_and_tables() -> None:
    assert sorted(commands(ENGLISH)) == sorted(commands(CHINESE))
    assert shape(ENGLISH) == shape(CHINESE)


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=lambda page: page.name)
def test_the_readme_shows_the_command_of_the_tests(page: Path) -> None:
    assert [TEST_COMMAND] in list(commands(page))
    assert TEST_COMMAND in (ROOT / ".ci/run").read_text("utf-8")
