"""Pages in two languages have the same headings, figures and code, and quote what the program prints."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from babel.messages.pofile import read_po
from support.paths import ROOT

DOCS = ROOT / "docs"
NAMES = ("cloud.md", "coming-from.md", "data.md", "export.md", "macos.md")
CATALOG = ROOT / "lorafit/locale/zh_CN/LC_MESSAGES/lorafit.po"
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
CODE = re.compile(r"`[^`\n]+`")
PLACEHOLDER = re.compile(r"\{[^}]*\}")
LEFT_OUT = "…"  # stands for a part of a quoted message


def sections(page: Path) -> Iterator[tuple[int, str]]:
    """Yield each section of `page`: the level of its heading (0: the text before it), and its text."""
    inside, level = False, 0
    lines: list[str] = []
    for line in page.read_text("utf-8").splitlines():
        inside ^= line.lstrip().startswith("```")
        if not inside and (heading := re.match(r"#+ ", line)):
            yield level, "\n".join(lines)
            level, lines = len(heading[0]) - 1, []
        lines.append(line)
    yield level, "\n".join(lines)


def code(text: str) -> Counter[str]:
    """Return the inline code in `text`, without messages of the program: they have spaces, and end with a period."""
    return Counter(part for part in CODE.findall(text) if part.isascii() and not part.endswith(".`"))


def tables(text: str) -> int:
    return sum(line.startswith("|") for line in text.splitlines())


def quotes(page: Path) -> list[str]:
    """Return the messages that `page` quotes: lines of text blocks, and code in it that ends with a period."""
    text = page.read_text("utf-8")
    lines = [line for block in re.findall(r"^```text\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]
    inline = [part[1:-1] for part in CODE.findall(text) if part[-2] in ".。"]
    return [line for line in lines + inline if line != LEFT_OUT]


def pattern(message: str) -> str | None:
    """Return the regular expression of `message`; None if there is little in it but placeholders."""
    parts = [part.replace("`", "") for part in PLACEHOLDER.split(message)]
    return ".+".join(map(re.escape, parts)) if len(re.findall(r"\w", "".join(parts))) > 4 else None


@pytest.mark.parametrize("name", NAMES)
def test_both_languages_have_the_same_sections_figures_and_code(name: str) -> None:
    english, chinese = (list(sections(page)) for page in (DOCS / name, DOCS / "zh" / name))
    assert [level for level, _text in english] == [level for level, _text in chinese]
    for (_level, ours), (_other, theirs) in zip(english, chinese, strict=True):
        title = ours.splitlines()[0] if ours else name
        assert Counter(NUMBER.findall(ours)) == Counter(NUMBER.findall(theirs)), title
        assert code(ours) == code(theirs), title
        assert tables(ours) == tables(theirs), title


@pytest.mark.parametrize("page", [DOCS / "macos.md", DOCS / "zh/macos.md"], ids=["en", "zh"])
def test_the_guide_quotes_what_the_program_prints(page: Path) -> None:
    with CATALOG.open("rb") as file:
        messages = [message.id if page.parent == DOCS else message.string for message in read_po(file)]
    printed = [known for message in messages if (known := pattern(str(message)))]
    assert len(quotes(page)) > 8
    for quote in quotes(page):
        text = quote.replace("`", "").replace(LEFT_OUT, "0")
        assert any(re.fullmatch(known, text) for known in printed), f"{page}: not printed: {quote}"
