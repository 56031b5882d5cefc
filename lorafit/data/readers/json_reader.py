"""Readers of JSON and JSONL files: one value at a time, with its line. Reading continues after a broken value."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

from lorafit.data.formats import KEYS
from lorafit.data.readers.reading import Reading
from lorafit.data.readers.row import Broken, Row
from lorafit.data.readers.text import open_text
from lorafit.errors import DataError
from lorafit.messages import _
from lorafit.units import count_text

CHUNK = 1 << 18  # characters per read
EDGE_CHARACTERS = 32  # characters; an error this close to the window's end may be a value that is not read completely
SEARCH_CHARACTERS = 1 << 18  # characters after a broken value that are searched at a time for the next value
MAX_ROW_CHARACTERS = 1 << 26  # characters per row; a string that is never closed must not fill the memory
SPACE = " \t\n\r"
NEXT = re.compile(r"[,\n]\s*(?=[{\[])")  # candidate positions of the next element
TRIES = 1000  # candidate positions tested in one window
LONG_STRETCH = 4  # times the longest good row: a damaged stretch of this length holds more than one row
FIRST_KEY = re.compile(r'\{\s*"([^"\\]*)"')
MEMBER = re.compile(r'[\s,]*"([^"\\]*)"\s*:\s*')  # a key of an object and the space before its value
LIST_OF_OBJECTS = re.compile(r"\[\s*(?=\{)")
SECOND_OBJECT = re.compile(r"[^\s,:\[{]\s*\n\s*\{")  # an object at a line's beginning, but not an element of a list


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


@dataclass
class _Lost:
    """A damaged stretch: its characters, and how many rows it held, by the beginnings of rows in it."""

    characters: int = 0
    rows: int = 1

    def add(self, text: str, begin: int, end: int, start: re.Pattern[str] | None) -> None:
        """Add `text[begin:end]`; `start` matches the beginning of a row."""
        found = sum(1 for _match in start.finditer(text, begin, end)) if start else 0
        self.rows = max(found, 1) if not self.characters else self.rows + found
        self.characters += end - begin


class _Window:
    """A moving window over a text file. `text[pos:]` is read but not used yet; `line` is the line number at `pos`.

    `like` is the last good value, and `longest` the number of characters of the longest one.
    """

    def __init__(self, file: TextIO) -> None:
        self.file, self.text, self.pos, self.line, self.ended = file, "", 0, 1, False
        self.decoder = _JsonDecoder()
        self.like: object = None
        self.longest = 0

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
                    self.like = value
                    if end - self.pos > self.longest:
                        self.longest = end - self.pos
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

    def skip_broken(self) -> _Lost:
        """Move `pos` to the next position where a value like the last good value seems to begin, else to the end.

        Return what was skipped.
        """
        lost, start = _Lost(), self._start_of_element()
        while True:
            while not self.ended and len(self.text) - self.pos < SEARCH_CHARACTERS:
                self.grow()
            edge = len(self.text) if self.ended else len(self.text) - SEARCH_CHARACTERS // 2
            places = [match.end() for match in NEXT.finditer(self.text, self.pos + 1, edge)]
            found = next((at for at in places[:TRIES] if self._begins(at, self.like)), None)
            end = edge if found is None else found
            lost.add(self.text, self.pos, end, start)
            self.advance(end)
            if found is not None or self.ended:
                return lost

    def _start_of_element(self) -> re.Pattern[str] | None:
        """Return the pattern of the beginning of an element: by the first key of a good one, else of the faulty one."""
        keys = [key for key in self.like if key.isascii()] if isinstance(self.like, dict) else []
        if not keys and (match := FIRST_KEY.match(self.text, self.pos)):
            keys = [match[1]]
        return re.compile(rf'\{{\s*"{re.escape(keys[0])}"\s*:') if keys else None

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


def read_json(path: Path, reading: Reading) -> Iterator[Row]:
    """Yield the elements of a JSON array one by one.

    Objects without an array are accepted too, because many JSONL files are named .json. So is one object around a list
    of rows. Raises DataError if the file starts with neither an array nor an object, or cannot be read to its end.
    """
    with open_text(path, reading) as file:
        window = _Window(file)
        if window.peek() not in ("[", "{", ""):
            found = window.text[window.pos : window.pos + 40]
            fix = _("Give a file of JSON objects, in an array or one per line.")
            what = _("The file contains neither a JSON array nor JSON objects.")
            raise DataError(what, where=f"{path}:{window.line}", found=found, fix=fix)
        if wrapper := _list_inside(window):
            yield from _read_wrapped(window, path, reading, *wrapper)
            return
        while following := window.peek():
            if following == ",":
                window.take(",")
            elif following == "[":
                yield from _read_array(window, path)
            else:
                yield _next_row(window, path)


def _read_array(window: _Window, path: Path) -> Iterator[Row]:
    open_line = window.line
    window.take("[")
    while following := window.peek():
        if following == ",":
            window.take(",")
        elif following == "]":
            window.take("]")
            return
        else:
            row = _next_row(window, path)
            yield row
            if isinstance(row.value, Broken) and not window.peek():
                return
    found = _("end of file inside the array that starts in line {line}").format(line=open_line)
    yield Row(Broken(found, _("`]` (the file is incomplete)")), str(path), window.line)


def _next_row(window: _Window, path: Path) -> Row:
    """Consume the next value and return its row; after a faulty value, move on to the next one that seems good.

    Raises DataError if several rows follow and none of them can be found.
    """
    line, value = window.line, window.value()
    if not isinstance(value, Broken):
        return Row(window.decoder.checked(value), str(path), line)
    lost = window.skip_broken()
    if window.peek() == "" and (lost.rows > 1 or lost.characters > LONG_STRETCH * max(window.longest, 1)):
        raise DataError(
            _("The rest of the file cannot be read: no good row follows a damaged one."),
            where=f"{path}:{line}",
            found=_("{problem}; rows lost: at least {rows}").format(problem=value.found, rows=count_text(lost.rows)),
            fix=_("Repair the file from this line on, or create it again."),
        )
    if lost.rows > 1:
        text = _("{problem}; rows lost: about {rows}; the next good row starts in line {line}")
        found = text.format(problem=value.found, rows=count_text(lost.rows), line=window.line)
        value = replace(value, found=found, rows=lost.rows)
    return Row(value, str(path), line)


# One object around the rows


def _list_inside(window: _Window) -> tuple[str, int] | None:
    """Return the key of the list of rows, and its place in the window, if the file is one object with such a list.

    An object that is itself a row, and several objects one after the other, give None.
    """
    text, decode = window.text, window.decoder.raw_decode
    if window.peek() != "{" or _is_sequence(window):
        return None
    at = window.pos + 1
    while match := MEMBER.match(text, at):
        key, at = match[1], match.end()
        if key in KEYS:
            return None
        try:
            if start := LIST_OF_OBJECTS.match(text, at):
                return None if _is_message(window, start.end()) else (key, at)
            _value, at = decode(text, at)
        except (ValueError, RecursionError):
            return None
    return None


def _is_sequence(window: _Window) -> bool:
    """Return whether further values follow the object at `pos`."""
    text = window.text
    try:
        _value, end = window.decoder.raw_decode(text, window.pos)
        return bool(text[end:].strip()) or len(text) == CHUNK
    except (ValueError, RecursionError):  # longer than the window, or damaged
        return SECOND_OBJECT.search(text, window.pos) is not None


def _is_message(window: _Window, at: int) -> bool:
    """Return whether the object at `at` is a message of a conversation: its list then is a part of a row."""
    try:
        value, _end = window.decoder.raw_decode(window.text, at)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and ("role" in value or "from" in value)


def _read_wrapped(window: _Window, path: Path, reading: Reading, key: str, at: int) -> Iterator[Row]:
    """Yield the elements of the list at `at`. Raises DataError if the object has another list of objects."""
    text = _("the rows are the list under the key `{key}`; other keys beside it are not used")
    reading.say(path, text.format(key=key.encode("utf-8", "backslashreplace").decode()))
    window.advance(at)
    yield from _read_array(window, path)
    while following := window.peek():
        if following in ",:":
            window.take(following)
        elif window.take("}"):
            break
        else:
            line, value = window.line, window.value()
            if isinstance(value, Broken):
                yield Row(value, str(path), line)
                return
            if isinstance(value, list) and value and all(isinstance(element, dict) for element in value):
                raise _several(path, line, key)
    if window.peek():
        raise _several(path, window.line, key)


def _several(path: Path, line: int, key: str) -> DataError:
    return DataError(
        _("The file contains several lists of rows."),
        where=f"{path}:{line}",
        found=_("the list under the key `{key}`, and more objects after it").format(key=key),
        fix=_("Save each list of rows as a file of its own."),
    )


# JSON Lines


def read_jsonl(path: Path, reading: Reading) -> Iterator[Row]:
    """Yield one JSON value per line, without blank lines. A file with one JSON text over several lines is read as JSON."""
    with open_text(path, reading) as file:
        first, second = islice(chain((line for line in _lines(file) if line.strip()), ("", "")), 2)
    if _goes_on(first, second):
        if first.lstrip().startswith("{"):
            reading.say(path, _("not one value per line; read as JSON over several lines"))
        yield from read_json(path, reading)
        return
    decoder = _JsonDecoder()
    with open_text(path, reading) as file:
        for number, line in enumerate(_lines(file), 1):
            if line.strip():
                yield Row(_one_value(decoder, line, number), str(path), number)


def _goes_on(first: str, second: str) -> bool:
    """Return whether the file is one JSON text: its value ends in a later line, or is a list that is its only line.

    `second` is the next line, "" if there is none.
    """
    beginning, text = first.strip()[:1], first.rstrip()
    if beginning == "[":
        return not second or isinstance(_one_value(_JsonDecoder(), first, 1), Broken)
    if beginning != "{" or not second:
        return False
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        cut = error.msg.startswith("Unterminated string") or error.pos >= len(text)
        return cut and not second.lstrip().startswith("{")
    except (ValueError, RecursionError):
        pass
    return False


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
    if not line[end:].strip():
        return decoder.checked(value)
    first = FIRST_KEY.match(line, start)  # rows without a line break between them begin alike
    rows = 1 + len(re.findall(r"\}[\s,]*" + re.escape(first[0]), line[end - 1 :])) if first else 1
    return replace(_not_json(_("extra text after the value"), line, end, number), rows=rows)
