"""Remedies in the texts for users: what a fix tells the user to type, and the command that follows from it."""

import ast
import re
import shlex
from collections.abc import Iterator, Sequence
from string import Formatter

from support.paths import ROOT

# A value behind a flag in prose: a placeholder in capitals, a number, a path or ID, or a word that flags accept.
VALUE = (
    r"(?:cpu|torch|mlx|adamw|fp32|bf16|4bit|none|demo|utf-8|cp\d+|\w+_proj(?:,\w+)*|\w+=\w+(?:,\w+=\w+)*"
    r"|[A-Z]+(?:\.\w+)?|[\w./-]*[\w-]/[\w./-]*\w|\d+(?:\.\d+)?)(?=[\s,;:)`]|\.\s|\.?$)"
)
FLAG = rf"--[a-z_]+(?: {VALUE})?"
DEED = re.compile(
    r"(?:Instead of )?`(?P<old>--\w+)`(?: is a name of [^`]+)?: `(?P<new>--[^`]+)`"
    r"|(?:[Rr]emove|Leave out) (?P<gone>`--\w+`|--\w+(?:, --\w+)*)"
    r"|`(?P<code>(?:lorafit |--)[^`]+)`|`[^`]*`|(?P<command>lorafit [a-z]+(?: [\w./-]*\w)*)"
    rf"|(?P<flags>{FLAG}(?: {FLAG})*)"
)
# Placeholders that stand for flags or a command.
TYPED = re.compile(r"\{(?:command|flags?|own|ways?|example)\}|`\{ours\}`")


def texts_with_a_remedy() -> set[str]:
    """Return each text of the code that names a flag or a command, or has a placeholder of TYPED; no help of flags."""
    found = set()
    for path in (ROOT / "lorafit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("_", "noted"):
                first = node.args[0] if node.args else None
                text = str(first.value) if isinstance(first, ast.Constant) else ""
                if re.search(r"--[a-z{]|`lorafit ", text) or TYPED.search(text):
                    found.add(text)
    return found


def deeds(fix: str) -> list[str]:
    """Return what `fix` tells the user to type: "lorafit …", "--flag value", "--new instead of --old", "remove --flag"."""
    found = []
    for match in DEED.finditer(fix):
        if match["old"]:
            found.append(f"{match['new']} instead of {match['old']}")
        elif match["gone"]:
            found.append(f"remove {match['gone'].strip('`')}")
        elif words := match["code"] or match["command"] or match["flags"]:  # else another program's command
            found.append(words)
    return found


def printed_from(text: str, printed: str) -> bool:
    """Return whether `printed` contains `text` with something in the place of each of its placeholders."""
    parts = [
        re.escape(literal) + (".+?" if name is not None else "") for literal, name, _s, _c in Formatter().parse(text)
    ]
    return re.search("".join(parts), printed, re.DOTALL) is not None


def carried_out(deed: str, argv: Sequence[str]) -> list[str]:
    """Return the command that a user types next: the one that `deed` names, or `argv` with its flags changed."""
    deed, _instead, old = deed.partition(" instead of ")
    words, changed = shlex.split(deed), without_flag(argv, old)
    if words[0] == "lorafit":
        return words[1:]
    if words[0] == "remove":
        for flag in words[1:]:
            changed = without_flag(changed, flag.strip(","))
        return changed
    for flag, values in _flags(words):
        changed = [*without_flag(changed, flag), flag, *values]
    return changed


def without_flag(argv: Sequence[str], flag: str) -> list[str]:
    """Return `argv` without `flag` and its value, wherever it stands."""
    if flag not in argv:
        return list(argv)
    start = argv.index(flag)
    is_switch = not argv[start + 1 : start + 2] or argv[start + 1].startswith("--")
    return without_flag([*argv[:start], *argv[start + (1 if is_switch else 2) :]], flag)


def _flags(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    starts = [place for place, word in enumerate(words) if word.startswith("--")]
    for start, end in zip(starts, [*starts[1:], len(words)], strict=True):
        yield words[start], list(words[start + 1 : end])
