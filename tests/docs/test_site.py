"""Links and anchors of the pages, and the navigation of the site. Where mkdocs is installed, the site is built too."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from support.doc_commands import PAGES
from support.paths import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from site_links import replace_outside_links

TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
FENCE = re.compile(r"^ *(```+|~~~+).*?^ *\1", re.M | re.S)
LINK = re.compile(r"\[[^][]*(?:\[[^]]*\][^][]*)*\]\((?!https?:|mailto:)([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.*?) *#* *$", re.M)
LOCAL_MKDOCS = ROOT / "build/site-env/bin/python"  # made by `make site`


class ConfigLoader(yaml.SafeLoader):
    """A loader for mkdocs.yml that reads tags of mkdocs, such as !ENV, as None."""


ConfigLoader.add_multi_constructor("", lambda _loader, _suffix, _node: None)


def text_of(page: Path) -> str:
    """Return the text of `page` without blocks of code."""
    return FENCE.sub("", page.read_text("utf-8"))


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Yield the file and the anchor ("" if there is none) of each relative link in `page`."""
    for target in LINK.findall(re.sub(r"`[^`\n]*`", "", text_of(page))):
        name, _hash, anchor = target.partition("#")
        yield (page.parent / unquote(name)).resolve() if name else page, unquote(anchor)


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings in `page`, made as GitHub and mkdocs.yml make them."""
    found: set[str] = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", page.read_text("utf-8")))
    for heading in HEADING.findall(text_of(page)):
        plain = re.sub(r"\[([^][]*)\]\([^)]*\)", r"\1", heading)
        found.add(re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-"))
    return found


def pages_of(entry: Any) -> Iterator[str]:
    """Yield the pages in a part of the navigation."""
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from pages_of(part)


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading(page: Path) -> None:
    for file, anchor in links(page):
        assert file.exists(), f"{page.name}: {file} does not exist"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name}: {file.name} has no heading for #{anchor}"


def test_the_navigation_has_every_page_once() -> None:
    config = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), ConfigLoader)  # a SafeLoader
    listed = sorted(pages_of(config["nav"]))
    assert listed == sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))


def test_every_chinese_page_has_an_english_one_of_the_same_name() -> None:
    for page in (ROOT / "docs/zh").glob("*.md"):
        assert (ROOT / "docs" / page.name).exists(), page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_nested_lists_are_indented_by_four(page: Path) -> None:
    """GitHub takes two as well; the site would show such items on the outer level."""
    assert not re.findall(r"^ {1,3}(?:[-*+]|\d+\.) .*", text_of(page), re.M)


def test_links_out_of_the_docs_lead_to_the_repository_on_the_site() -> None:
    text = "[a](../cli.md#x), [b](data.md), ![c](../parity.png)"  # inside docs/
    assert replace_outside_links(text, "zh/faq.md", None) == text
    assert replace_outside_links("[a](../README.md#x)", "faq.md", None) == "a"
    address = "https://example.org/us/lorafit"
    absolute = f"[a]({address}/blob/main/README.md#x)"
    assert replace_outside_links("[a](../README.md#x)", "faq.md", address) == absolute
    assert replace_outside_links("[a](../../README.md#x)", "zh/faq.md", address) == absolute


def test_mkdocs_builds_the_site_without_a_warning(tmp_path: Path) -> None:
    python = LOCAL_MKDOCS if LOCAL_MKDOCS.exists() else sys.executable
    if python == sys.executable and not importlib.util.find_spec("material"):
        pytest.skip("mkdocs is not installed; `make site` installs it")
    command = [str(python), "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "zh/macos/index.html").exists()
