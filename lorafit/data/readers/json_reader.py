"""Readers of JSON and JSONL files: one value at a time, with its line. Reading continues after a broken value."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from lorafit.data.readers.row import Broken, Row
from lorafit.data.readers.text import open_text
from lorafit.errors import DataError
from lorafit.messages import _

CHUNK = 1 << 18  # characters per read
EDGE_CHARACTERS = 32  # characters; an error this close to the window's end may be a value that is not read completely
SEARCH_CHARACTERS = 1 << 18  # characters after a broken value that are searched at a time for the next value
MAX_ROW_CHARACTERS = 1 << 26  # characters per row; a string that is never closed must not fill the memory
SPACE = " \t\n\r"
NEXT = re.compile(r"[,\n]\s*(?=[{\[])")  # candidate positions of the next element
TRIES = 1000  # candidate positions tested in one window


class _JsonDecoder:
    """A JSON decoder that also records the keys that occur more than once in one object (`duplicate_keys`)."""

    def __init__(self) -> None:
        self.duplicate_keys: list[str] = []
        self.raw_decode = json.JSONDecoder(object_pairs_hook=self._object).raw_decode

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        made = dict(pairs)
        if len(made) < len(pairs):
            keys = [key for key, _value in pairs]
            self.duplicate_keys += [key for key in keys if keys.count(key) > 1]
        return made

    def checked(self, value: object) -> object:
        """Return `value`, which was decoded last, or Broken if a key occurs more than once in one of its objects."""
        twice, self.duplicate_keys = self.duplicate_keys, []
        if not twice:
            return value
        return Broken(
            _("repeated key `{key}` in one object").format(key=twice[0]), _("each key only once"), str(value)[:200]
        )


class _Window:
    """A moving window over a text file. `text[pos:]` is read but not used yet; `line` is the line number at `pos`."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.text, self.pos, self.line, self.ended = file, "", 0, 1, False
        self.decoder = _JsonDecoder()

    def grow(self) -> None:
        """Drop the used text and read more of the file.

        At least as many characters are read as are kept, so that a huge element does not cost quadratic time.
        """
        kept = self.text[self.pos :]
        fresh = self.file.read(max(CHUNK, len(kept)))
        self.text, self.pos, self.ended = kept + fresh, 0, not fresh

    def advance(self, end: int) -> None:
        self.line += self.text.count("\n", self.pos, end)
        self.pos = end

    def peek(self) -> str:
        """Move `pos` to the next character that is not white space and return it; return "" at the end of the file."""
        while True:
            end = self.pos
            while end < len(self.text) and self.text[end] in SPACE:
                end += 1
            self.advance(end)
            if end < len(self.text) or self.ended:
                return self.text[end : end + 1]
            self.grow()

    def take(self, characters: str) -> bool:
        """Consume the next character if it is one of `characters`; return whether it was."""
        found = self.peek()
        if found and found in characters:
            self.advance(self.pos + 1)
            return True
        return False

    def value(self) -> object:
        """Consume and return the next JSON value; for a faulty value return Broken and leave `pos` at its beginning."""
        while True:
            self.decoder.duplicate_keys = []
            try:
                value, end = self.decoder.raw_decode(self.text, self.pos)
                if self.ended or end < len(self.text) - EDGE_CHARACTERS:
                    self.advance(end)
                    return value
            except json.JSONDecodeError as error:
                goes_on = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - EDGE_CHARACTERS
                if self.ended or not goes_on or len(self.text) - self.pos > MAX_ROW_CHARACTERS:
                    line = self.line + self.text.count("\n", self.pos, error.pos)
                    return _not_json(_problem(error.msg), self.text, error.pos, line)
            except (ValueError, RecursionError) as error:  # a number of 5000 digits; 10000 levels of nesting
                return _not_json(str(error), self.text, self.pos, self.line)
            self.grow()

    def skip_broken(self, like: object) -> bool:
        """Move `pos` to the next position where a value like `like`, the last good value, seems to begin.

        Return False at the end of the file.
        """
        while True:
            while not self.ended and len(self.text) - self.pos < SEARCH_CHARACTERS:
                self.grow()
            edge = len(self.text) if self.ended else len(self.text) - SEARCH_CHARACTERS // 2
            places = [match.end() for match in NEXT.finditer(self.text, self.pos + 1, edge)]
            if (found := next((at for at in places[:TRIES] if self._begins(at, like)), None)) is not None:
                self.advance(found)
                return True
            self.advance(edge)
            if self.ended:
                return False

    def _begins(self, at: int, like: object) -> bool:
        """Return whether a value like `like` begins at `at`: of the same type and, for objects, with a common key.

        If `like` is None, any JSON value is accepted.
        """
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
    return Broken(found, _("complete, valid JSON"), text[at : at + 200])


def _problem(message: str) -> str:
    """Return the error message of `json` in the user's language; rare messages stay untranslated."""
    words = {
        "Expecting value": _("missing value, or a value that is not JSON"),
        "Expecting ',' delimiter": _("missing comma"),
        "Expecting ':' delimiter": _("missing colon"),
        "Expecting property name enclosed in double quotes": _("missing key in double quotes"),
        "Unterminated string starting at": _("text without a closing quote"),
        "Invalid control character at": _("line break or control character in a text"),
    }
    return words.get(message, message)


def read_json(path: Path) -> Iterator[Row]:
    """Yield the elements of a JSON array one by one.

    Objects without an array are accepted too, because many JSONL files are named .json. Raises DataError if the file
    starts with neither an array nor an object.
    """
    with open_text(path) as file:
        window, like, open_line = _Window(file), None, 0
        if window.peek() not in ("[", "{", ""):
            found = window.text[window.pos : window.pos + 40]
            fix = _("Give a file of JSON objects, in an array or one per line.")
            what = _("The file contains neither a JSON array nor JSON objects.")
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
            found = _("end of file inside the array that starts in line {line}").format(line=open_line)
            yield Row(Broken(found, _("`]` (the file is incomplete)")), str(path), window.line)


def read_jsonl(path: Path) -> Iterator[Row]:
    """Yield one JSON value per line, without blank lines. A file with an array over several lines is read as JSON."""
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
    """Yield the lines of the file, each cut to MAX_ROW_CHARACTERS characters."""
    while line := file.readline(MAX_ROW_CHARACTERS):
        yield line
        while line and not line.endswith("\n") and len(line) == MAX_ROW_CHARACTERS:
            line = file.readline(MAX_ROW_CHARACTERS)


def _one_value(decoder: _JsonDecoder, line: str, number: int) -> object:
    decoder.duplicate_keys = []
    start = len(line) - len(line.lstrip())
    try:
        value, end = decoder.raw_decode(line, start)
    except json.JSONDecodeError as error:
        return _not_json(_problem(error.msg), line, error.pos, number)
    except (ValueError, RecursionError) as error:  # as in `_Window.value`
        return _not_json(str(error), line, start, number)
    rest = line[end:].strip()
    return _not_json(_("extra text after the value"), line, end, number) if rest else decoder.checked(value)
