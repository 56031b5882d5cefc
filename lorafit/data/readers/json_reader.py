"""What stands in a JSON or JSONL file? Its values one by one, each with its line; behind a broken one it goes on."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from lorafit.data.readers.row import Broken, Row
from lorafit.data.readers.text import open_text
from lorafit.errors import DataError
from lorafit.messages import _

CHUNK = 1 << 18  # characters
EDGE = 32  # characters: an error this near to the window's end may only be a value that goes on behind it
LOOK = 1 << 18  # characters behind a broken value in which the next one is looked for at a time
LONGEST = 1 << 26  # characters of one row: a string that never ends must not fill the memory
SPACE = " \t\n\r"
NEXT = re.compile(r"[,\n]\s*(?=[{\[])")  # where an element may begin
TRIES = 1000  # such places looked at in one window


class _JsonDecoder:
    """JSON's decoder, which also notes the keys that stand twice in one object."""

    def __init__(self) -> None:
        self.twice: list[str] = []
        self.raw_decode = json.JSONDecoder(object_pairs_hook=self._object).raw_decode

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        made = dict(pairs)
        if len(made) < len(pairs):
            keys = [key for key, _value in pairs]
            self.twice += [key for key in keys if keys.count(key) > 1]
        return made

    def checked(self, value: object) -> object:
        """`value`, the one decoded last, or Broken when a key stood twice in it."""
        twice, self.twice = self.twice, []
        if not twice:
            return value
        return Broken(
            _("the key `{key}` twice in one object").format(key=twice[0]), _("each key once"), str(value)[:200]
        )


class _Window:
    """A window that moves over a text file: `text[pos:]` is what is read and not yet used, `line` the line at `pos`."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.text, self.pos, self.line, self.ended = file, "", 0, 1, False
        self.decoder = _JsonDecoder()

    def grow(self) -> None:
        """Drop what is used and read on: as much again as is kept, so that a huge element costs no quadratic time."""
        kept = self.text[self.pos :]
        fresh = self.file.read(max(CHUNK, len(kept)))
        self.text, self.pos, self.ended = kept + fresh, 0, not fresh

    def advance(self, end: int) -> None:
        self.line += self.text.count("\n", self.pos, end)
        self.pos = end

    def peek(self) -> str:
        """The next character that is no space, "" at the end of the file; `pos` moves to it."""
        while True:
            end = self.pos
            while end < len(self.text) and self.text[end] in SPACE:
                end += 1
            self.advance(end)
            if end < len(self.text) or self.ended:
                return self.text[end : end + 1]
            self.grow()

    def take(self, characters: str) -> bool:
        """Step over one of `characters` if it comes next."""
        found = self.peek()
        if found and found in characters:
            self.advance(self.pos + 1)
            return True
        return False

    def value(self) -> object:
        """The next JSON value, Broken where it is none; then `pos` stays at its first character."""
        while True:
            self.decoder.twice = []
            try:
                value, end = self.decoder.raw_decode(self.text, self.pos)
                if self.ended or end < len(self.text) - EDGE:
                    self.advance(end)
                    return value
            except json.JSONDecodeError as error:
                goes_on = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - EDGE
                if self.ended or not goes_on or len(self.text) - self.pos > LONGEST:
                    line = self.line + self.text.count("\n", self.pos, error.pos)
                    return _not_json(_problem(error.msg), self.text, error.pos, line)
            except (ValueError, RecursionError) as error:  # a number of 5000 digits; nested 10000 deep
                return _not_json(str(error), self.text, self.pos, self.line)
            self.grow()

    def skip_broken(self, like: object) -> bool:
        """Go to where the next value like `like` (the last good one) seems to begin; False at the end of the file."""
        while True:
            while not self.ended and len(self.text) - self.pos < LOOK:
                self.grow()
            edge = len(self.text) if self.ended else len(self.text) - LOOK // 2
            places = [match.end() for match in NEXT.finditer(self.text, self.pos + 1, edge)]
            if (found := next((at for at in places[:TRIES] if self._begins(at, like)), None)) is not None:
                self.advance(found)
                return True
            self.advance(edge)
            if self.ended:
                return False

    def _begins(self, at: int, like: object) -> bool:
        """Whether a value of the same kind, with at least one of the same keys, stands at `at`."""
        try:
            value, _end = self.decoder.raw_decode(self.text, at)
        except (ValueError, RecursionError):
            return False
        if like is None or not isinstance(value, dict):
            return like is None or type(value) is type(like)
        return isinstance(like, dict) and not like.keys().isdisjoint(value)


def _not_json(problem: str, text: str, at: int, line: int) -> Broken:
    excerpt = text[max(0, at - 20) : at + 20]
    found = _("{problem} in line {line}, near {excerpt!r}").format(problem=problem, line=line, excerpt=excerpt)
    return Broken(found, _("valid JSON, to its end"), text[at : at + 200])


def _problem(message: str) -> str:
    """What `json` says of a text, in the user's language; what it says seldom stays as it is."""
    words = {
        "Expecting value": _("a value is missing or not JSON"),
        "Expecting ',' delimiter": _("a comma is missing"),
        "Expecting ':' delimiter": _("a colon is missing"),
        "Expecting property name enclosed in double quotes": _("a key in double quotes is missing"),
        "Unterminated string starting at": _("a text that does not end"),
        "Invalid control character at": _("a control character in a text"),
    }
    return words.get(message, message)


def read_json(path: Path) -> Iterator[Row]:
    """The elements of an array, one by one; also objects one after the other, since many such files are named .json."""
    with open_text(path) as file:
        window, like, open_line = _Window(file), None, 0
        if window.peek() not in ("[", "{", ""):
            found = window.text[window.pos : window.pos + 40]
            fix = _("Give a file of JSON objects, in an array or one a line.")
            what = _("The file is neither a JSON array nor JSON objects.")
            raise DataError(what, where=f"{path}:{window.line}", found=found, fix=fix)
        while following := window.peek():
            if following == ",":
                window.take(",")
            elif following == "[" and not open_line:
                open_line = window.line
                window.take("[")
            elif following == "]" and open_line:
                open_line = 0
                window.take("]")
            else:
                line = window.line
                value = window.value()
                yield Row(window.decoder.checked(value), str(path), line)
                if not isinstance(value, Broken):
                    like = value
                elif not window.skip_broken(like):
                    return
        if open_line:
            found = _("the end of the file in an array that began in line {line}").format(line=open_line)
            yield Row(Broken(found, _("`]`: the file was cut off")), str(path), window.line)


def read_jsonl(path: Path) -> Iterator[Row]:
    """One JSON value a line; blank lines are passed over. An array over several lines is read as one."""
    with open_text(path) as file:
        first = next((line for line in _lines(file) if line.strip()), "")
    if first.lstrip().startswith("[") and isinstance(_one_value(_JsonDecoder(), first, 1), Broken):
        yield from read_json(path)
        return
    decoder = _JsonDecoder()
    with open_text(path) as file:
        for number, line in enumerate(_lines(file), 1):
            if line.strip():
                yield Row(_one_value(decoder, line, number), str(path), number)


def _lines(file: TextIO) -> Iterator[str]:
    """The file's lines; of one beyond LONGEST only the beginning."""
    while line := file.readline(LONGEST):
        yield line
        while line and not line.endswith("\n") and len(line) == LONGEST:
            line = file.readline(LONGEST)


def _one_value(decoder: _JsonDecoder, line: str, number: int) -> object:
    decoder.twice = []
    start = len(line) - len(line.lstrip())
    try:
        value, end = decoder.raw_decode(line, start)
    except json.JSONDecodeError as error:
        return _not_json(_problem(error.msg), line, error.pos, number)
    except (ValueError, RecursionError) as error:  # as above
        return _not_json(str(error), line, start, number)
    rest = line[end:].strip()
    return _not_json(_("more behind the value"), line, end, number) if rest else decoder.checked(value)
