"""Command lines in the documentation, and the arguments of `lorafit` that they correspond to."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from support.paths import ROOT

PAGES = sorted([*ROOT.glob("README*.md"), *ROOT.glob("docs/**/*.md")])


SCRIPTS = {"train.py": "train", "inference.py": "chat", "compare_models.py": "compare"}


FENCE = re.compile(r"^(?P<indent> *)```bash\n(?P<text>.*?)^(?P=indent)```", re.M | re.S)


INLINE = re.compile(r"`((?:python \w+\.py|\./run_\w+\.sh|lorafit [a-z]+)(?: [^`|…]*)?)`")


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the command lines in `page`, split into words: lines of bash blocks, and lorafit commands in the text."""
    text = page.read_text("utf-8")
    for block in FENCE.finditer(text):
        for line in block["text"].replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words
    for inline in INLINE.finditer(re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)):
        yield shlex.split(inline[1])


def arguments(words: list[str]) -> list[str] | None:
    """Return the arguments that `lorafit` gets from a command line, or None if the command is another program."""
    match words:
        case ["python", script, *rest] if script in SCRIPTS:
            return [SCRIPTS[script], *rest]
        case ["./run_train.sh", *rest]:
            return ["train", *rest]
        case ["lorafit", *rest]:
            return rest
    return None
