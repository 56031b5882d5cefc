"""The part of Go's text/template that Modelfiles of lorafit use, executed in Python.

It has if, else, range over messages with two variables, assignments, strings, numbers, fields, and the functions and, eq
and ne. Go itself executes the same templates in the tests.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

STRING = r'"(?:\\.|[^"\\])*"'
ACTION = re.compile(r"\{\{ ((?:" + STRING + r'|[^"])*?) \}\}', re.DOTALL)
WORD = re.compile(STRING + r"|[()]|:?=|[^\s()]+")
ESCAPE = re.compile(r"\\(U[0-9a-f]{8}|.)")
FUNCTIONS = {
    "eq": lambda *values: values[0] == values[1],
    "ne": lambda *values: values[0] != values[1],
    "and": lambda *values: next((value for value in values if not value), values[-1]),
}

Ends = dict[int, tuple[list[int], int]]
Scope = dict[str, Any]  # "$": the data; "": what a dot stands for; variables with their names


def execute(template: str, data: Mapping[str, Any]) -> str:
    """Return the text of `template` for `data`. Raises ValueError or LookupError for a template of another kind."""
    parts = ACTION.split(template)
    end = _ends(parts)
    return "".join(_run(parts, 0, len(parts), end, {"$": data, "": data}))


def _ends(parts: list[str]) -> Ends:
    """Return for each if and range the places of its else actions, and of its end. Actions are at odd places."""
    open_blocks: list[tuple[int, list[int]]] = []
    end: Ends = {}
    for place in range(1, len(parts), 2):
        word = parts[place].split(" ")[0]
        if word in ("if", "range"):
            open_blocks.append((place, []))
        elif word == "else":
            open_blocks[-1][1].append(place)
        elif word == "end":
            start, others = open_blocks.pop()
            end[start] = (others, place)
    if open_blocks:
        raise ValueError("a block without an end")
    return end


def _run(parts: list[str], start: int, stop: int, end: Ends, scope: Scope) -> Iterator[str]:
    place = start
    while place < stop:
        if not place % 2:
            yield parts[place]
            place += 1
            continue
        action = parts[place]
        if action.startswith("range "):
            yield from _range(parts, place, end, scope)
            place = end[place][1]
        elif action.startswith("if "):
            others, last = end[place]
            borders = [place, *others, last]
            for first, after in itertools.pairwise(borders):
                test = re.sub(r"^(else )?(if )?", "", parts[first])
                if test == "" or parts[first] == "else" or _value(test, scope):
                    yield from _run(parts, first + 1, after, end, scope)
                    break
            place = last
        elif found := re.match(r"(\$\w+) :?= (.*)", action, re.DOTALL):
            scope[found[1]] = _value(found[2], scope)
        else:
            yield str(_value(action, scope))
        place += 1


def _range(parts: list[str], place: int, end: Ends, scope: Scope) -> Iterator[str]:
    found = re.fullmatch(r"range (\$\w+), (\$\w+) := (.*)", parts[place])
    if found is None:
        raise ValueError(parts[place])
    outer = scope[""]
    for number, item in enumerate(_value(found[3], scope)):
        scope |= {found[1]: number, found[2]: item, "": item}
        yield from _run(parts, place + 1, end[place][1], end, scope)
    scope[""] = outer


def _value(text: str, scope: Scope) -> Any:
    words = WORD.findall(text)
    value = _call(words, scope)
    if words:
        raise ValueError(text)
    return value


def _call(words: list[str], scope: Scope) -> Any:
    """Return the value of the first words up to a closing parenthesis, and remove them: a function with its arguments."""
    first = words[0]
    if first not in FUNCTIONS:
        return _operand(words, scope)
    words.pop(0)
    given = []
    while words and words[0] != ")":
        given.append(_operand(words, scope))
    return FUNCTIONS[first](*given)


def _operand(words: list[str], scope: Scope) -> Any:
    word = words.pop(0)
    if word == "(":
        value = _call(words, scope)
        if not words or words.pop(0) != ")":
            raise ValueError("a parenthesis without an end")
        return value
    if word.startswith('"'):
        return ESCAPE.sub(_unescaped, word[1:-1])
    if word.isdigit():
        return int(word)
    name, _dot, key = word.partition(".")
    return scope[name][key] if key else scope[name]


def _unescaped(found: re.Match[str]) -> str:
    code = found[1]
    return chr(int(code[1:], 16)) if code[0] == "U" else {"n": "\n"}.get(code, code)
