"""Every text for users is translated, and the compiled catalog (.mo) equals the written one (.po)."""

import ast
import string
from collections.abc import Iterator

import pytest
from babel.messages.catalog import Catalog
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po
from support.paths import ROOT

from lorafit.messages import OLDER

FOLDER = ROOT / "lorafit/locale/zh_CN/LC_MESSAGES"


def catalogue(name: str = "lorafit") -> Catalog:
    """Return the written catalog `name`."""
    with (FOLDER / f"{name}.po").open("rb") as file:
        return read_po(file, locale="zh_CN")


def texts_in_code() -> Iterator[tuple[str, str]]:
    """Yield (text, file:line) of each `_("...")` and `noted("...")`, and the help in `what()`, `how()`, `Field()`."""
    for path in sorted((ROOT / "lorafit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            text = text_of(node)
            if text is not None:
                assert isinstance(text, ast.Constant), f"{path}:{text.lineno}: a text for users is a literal"
                yield text.value, f"{path.relative_to(ROOT)}:{text.lineno}"


def text_of(node: ast.AST) -> ast.expr | None:
    """Return the text for users that the call `node` has as an argument; None for every other node."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return None
    if node.func.id in ("_", "noted") and node.args:
        return node.args[0]
    if node.func.id in ("what", "how"):
        return node.args[1]
    helps = [keyword.value for keyword in node.keywords if keyword.arg == "description"]
    is_inner = bool(helps) and isinstance(helps[0], ast.Name)  # inside what() and how()
    return helps[0] if node.func.id == "Field" and helps and not is_inner else None


def placeholders(text: str) -> list[str]:
    """Return the names in braces in `text`, sorted."""
    return sorted(name for _text, name, _spec, _conversion in string.Formatter().parse(text) if name is not None)


def test_every_text_in_the_code_is_in_the_catalogue() -> None:
    known = {message.id for message in catalogue()}
    missing = [f"{place}: {text}" for text, place in texts_in_code() if text not in known]
    assert not missing, "run `make locale` and translate:\n" + "\n".join(missing)


def test_the_catalogue_has_no_text_that_the_code_no_longer_has() -> None:
    used = {text for text, _place in texts_in_code()}
    assert not [message.id for message in catalogue() if message.id and message.id not in used]


def test_no_entry_is_empty_or_a_guess() -> None:
    assert not [message.id for message in catalogue() if message.id and (not message.string or message.fuzzy)]


@pytest.mark.filterwarnings("error")
def test_each_translation_has_the_same_placeholders() -> None:
    for message in catalogue():
        if message.id and message.string:
            assert set(placeholders(str(message.string))) == set(placeholders(str(message.id))), message.id


@pytest.mark.parametrize("name", ["lorafit", OLDER])
def test_the_compiled_catalogue_equals_the_written_one(name: str) -> None:
    # The bytes may differ: the header of a compiled catalog names the version of Babel.
    with (FOLDER / f"{name}.mo").open("rb") as file:
        compiled = {message.id: message.string for message in read_mo(file) if message.id}
    assert compiled == {message.id: message.string for message in catalogue(name) if message.id}, "run `make locale`"
    assert compiled
