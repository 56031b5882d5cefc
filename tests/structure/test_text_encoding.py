"""Every text file and text pipe of lorafit has a named encoding: none depends on the locale of the machine."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

FILES = [*(ROOT / "lorafit").rglob("*.py"), *(ROOT / "scripts").glob("*.py"), *ROOT.glob("*.py")]
ENCODING_PLACE = {"read_text": 0, "write_text": 1}  # the place of the encoding among the arguments
STARTERS = ("run", "Popen", "check_output")


def without_encoding(tree: ast.AST) -> Iterator[int]:
    """Yield the lines of the calls that read or write text without a named encoding."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        of_path = isinstance(node.func, ast.Attribute)
        if "encoding" in given or None in given:
            continue
        if name in ENCODING_PLACE and len(node.args) <= ENCODING_PLACE[name]:
            yield node.lineno
        elif name == "open" and not of_path | (len(node.args) > 2):
            mode = node.args[1] if len(node.args) > 1 else given.get("mode", ast.Constant("r"))
            if isinstance(mode, ast.Constant) and "b" not in str(mode.value):
                yield node.lineno
        elif (name == "open" and of_path and node.args and text_mode(node.args[0])) or (
            name in STARTERS and "text" in given
        ):
            yield node.lineno


def text_mode(mode: ast.expr) -> bool:
    """Return whether `mode` is a mode of Path.open for text."""
    return isinstance(mode, ast.Constant) and mode.value in ("r", "w", "a", "x", "r+", "w+", "a+")


@pytest.mark.parametrize(
    "code",
    ["p.read_text()", "p.write_text(x)", "open(p)", "open(p, 'w')", "p.open('a')", "subprocess.run(c, text=True)"],
)
def test_the_check_finds_a_text_without_an_encoding(code: str) -> None:
    assert list(without_encoding(ast.parse(code))) == [1]


def test_no_text_depends_on_the_locale() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in FILES
        for line in without_encoding(ast.parse(Path(path).read_text("utf-8")))
    ]
    assert not found
