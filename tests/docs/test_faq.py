"""docs/faq.md quotes the program's own messages: each heading about an error is a text of the catalog, in both languages.

In a heading, … stands for a placeholder. A heading that matches no text shows the nearest ones.
"""

import difflib
import re
from pathlib import Path

import pytest
from babel.messages.pofile import read_po
from support.paths import ROOT

PAGES = {"en": ROOT / "docs/faq.md", "zh": ROOT / "docs/zh/faq.md"}
ERRORS = {"en": "Errors", "zh": "错误"}  # the sections whose titles start so contain the quoted messages
SECTION = re.compile(r"^## +(?P<title>.+?)\n(?P<text>.*?)(?=^## |\Z)", re.M | re.S)
HEADING = re.compile(r"^### +(.+?) *$", re.M)


def normalized(message: str) -> str:
    """Return `message` with … for each placeholder, and single spaces."""
    return re.sub(r"\s+", " ", re.sub(r"\{[^{}]*\}", "…", message)).strip()


def catalog() -> dict[str, set[str]]:
    """Return the normalized Chinese texts of each normalized English text."""
    texts: dict[str, set[str]] = {}
    with (ROOT / "lorafit/locale/zh_CN/LC_MESSAGES/lorafit.po").open("rb") as file:
        for message in read_po(file):
            if message.id and message.string:
                texts.setdefault(normalized(str(message.id)), set()).add(normalized(str(message.string)))
    return texts


def quoted(language: str, page: Path | None = None) -> list[str]:
    """Return the headings that quote messages in the page of `language`, in order."""
    text = (page or PAGES[language]).read_text("utf-8")
    sections = [section["text"] for section in SECTION.finditer(text) if section["title"].startswith(ERRORS[language])]
    return [normalized(heading) for section in sections for heading in HEADING.findall(section)]


def unknown(heading: str, texts: list[str]) -> str:
    """Return the report of a heading that is not in `texts`, with the nearest ones."""
    near = difflib.get_close_matches(heading, texts, n=2, cutoff=0.3) or ["(none)"]
    return f"not a message of lorafit: {heading}\n  nearest: " + "\n           ".join(near)


def test_every_english_heading_is_a_message() -> None:
    texts = catalog()
    assert len(quoted("en")) >= 25
    wrong = [unknown(heading, list(texts)) for heading in quoted("en") if heading not in texts]
    assert not wrong, "\n".join(["", *wrong])


def test_every_chinese_heading_is_the_translation_of_the_english_one() -> None:
    texts, english, chinese = catalog(), quoted("en"), quoted("zh")
    assert len(english) == len(chinese)
    wrong = [
        unknown(theirs, sorted(texts.get(ours, ())))
        for ours, theirs in zip(english, chinese, strict=True)
        if theirs not in texts.get(ours, ())
    ]
    assert not wrong, "\n".join(["", *wrong])


@pytest.mark.parametrize("language", PAGES)
def test_no_message_is_quoted_twice(language: str) -> None:
    headings = quoted(language)
    assert len(headings) == len(set(headings))


def test_both_pages_have_the_same_shape() -> None:
    levels = [re.findall(r"^(#+) ", page.read_text("utf-8"), re.M) for page in PAGES.values()]
    assert levels[0] == levels[1]


def test_a_wrong_heading_shows_the_nearest_message(tmp_path: Path) -> None:
    page = tmp_path / "faq.md"
    page.write_text("# Page\n\n## Errors: flags\n\n### Unknown flags `…`.\n\n## Questions\n\n### Why?\n", "utf-8")
    (heading,) = quoted("en", page)
    assert heading not in catalog()
    assert "nearest: Unknown flag `…`." in unknown(heading, list(catalog()))
