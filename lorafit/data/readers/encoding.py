"""Encodings of text: the one that the user names, or the one that a sample of the bytes has.

A byte order mark and valid UTF-8 are certain. An encoding with several bytes per character is taken if the sample
decodes without an error to the script of its language. Any bytes decode in an encoding with one byte per character, so
such an encoding is never taken by guess: the file is refused, with the likeliest encodings.
"""

import codecs
import difflib
import io
import re
import unicodedata
from collections.abc import Callable, Iterator
from encodings.aliases import aliases
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from lorafit.data.readers.reading import Reading
from lorafit.errors import ConfigError, DataError
from lorafit.messages import _, listed, noted, translate

if TYPE_CHECKING:
    from charset_normalizer import CharsetMatch

BYTE_ORDER_MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
SHARE = 0.9  # of the letters must be of the language's script; other text does not reach this share by chance
KANA_SHARE = 0.15  # of the letters of a Japanese text
FEWEST_LETTERS, FOR_TWO_LANGUAGES = 8, 50  # fewer letters may fit a language, or two of them, by chance
FEWEST_ZEROS = 4  # zero bytes, all in even or all in odd places, that show UTF-16
RUN_SHARE = 0.7  # of the letters stand beside another; letters with accents do not
DAMAGED_SHARE = 0.02  # of the characters that cannot be decoded, up to which an encoding is still suggested
EXAMINED = 50_000  # characters beyond ASCII that are examined for their script
GUESSED_BYTES = 1 << 16  # bytes that are examined for suggestions
CLOSE = 0.06  # difference in the figures of charset-normalizer that says nothing
SHOWN = 60  # characters of a decoded line
BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")
UNDECODED = re.compile("[\udc80-\udcff]")  # bytes that were no UTF-8
HANGUL, KANA, HAN, ITERATION = ("가", "힣"), ("ぁ", "ヿ"), ("一", "鿿"), ("々", "々")  # first and last characters
# Encodings that are read as a larger one that contains them, as browsers do.
LARGER = {"gb2312": "gb18030", "gbk": "gb18030", "euc_kr": "cp949", "shift_jis": "cp932", "big5": "cp950"}
NOT_TEXT = ("idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape")
WESTERN = "cp1252"
OTHERS = ("cp1252", "cp1250", "cp1251", "cp1254", "latin_1")  # suggested where nothing likelier is known


def parse_encoding(text: str | None) -> str | None:
    """Return Python's name of the encoding `text`; None without text. Raises ConfigError for an unknown encoding."""
    if not text:
        return None
    try:
        name = codecs.lookup(text.strip()).name
        io.TextIOWrapper(io.BytesIO(), encoding=name).close()  # refuses codecs that are not of text, such as base64
    except (LookupError, ValueError):
        name = NOT_TEXT[0]
    if name in NOT_TEXT:
        known = sorted({*aliases, *aliases.values()})
        near = difflib.get_close_matches(text.lower().replace("-", "_"), known, n=3)
        fix = (
            _("Did you mean {names}?").format(names=listed(near))
            if near
            else _("Give an encoding that Python knows, such as {names}.").format(
                names="cp1252, cp949, euc_jp, gb18030"
            )
        )
        raise ConfigError(_("Unknown text encoding."), where="encoding", found=text, fix=fix)
    return LARGER.get(name.replace("-", "_"), name)


def encoding_of(sample: bytes, is_cut: bool, path: Path, reading: Reading) -> str:
    """Return the encoding of a file that begins with `sample`, and note it in `reading` if it was guessed.

    `is_cut` says that the file is longer than the sample. Raises DataError if the encoding is not known.
    """
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if sample.startswith(mark):
            return encoding
    if reading.encoding:
        return reading.encoding
    if wide := _without_mark(sample):
        raise _no_mark(sample, path, wide)
    if _decoded(sample, "utf-8", is_cut) is not None or _is_damaged_utf8(sample):
        return "utf-8"
    fitting = [name for name in SCRIPTS if _fits(_decoded(sample, name, is_cut), name)]
    letters = _letters(sample.decode(fitting[0], "ignore")) if fitting else ""
    if len(letters) < (FEWEST_LETTERS if len(fitting) == 1 else FOR_TWO_LANGUAGES):
        raise _refusal(sample, path, fitting)
    text = _("not UTF-8; read as {encoding} ({language}); to read it otherwise, set --encoding")
    reading.say(path, text.format(encoding=fitting[0], language=translate(SCRIPTS[fitting[0]][0])))
    return fitting[0]


def _decoded(sample: bytes, encoding: str, is_cut: bool) -> str | None:
    """Return the sample as text, without a character cut at its end; None if it is not in this encoding."""
    try:
        return sample.decode(encoding)
    except UnicodeDecodeError as error:
        cut = is_cut and error.start >= len(sample) - 4
        return sample[: error.start].decode(encoding) if cut else None


def _without_mark(sample: bytes) -> str:
    """Return the form of UTF-16 that the sample has without a byte-order mark, or "": each second byte is often zero."""
    zeros = sample[0::2].count(0), sample[1::2].count(0)
    name = "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
    return name if max(zeros) >= FEWEST_ZEROS and min(zeros) == 0 and _decoded(sample, name, True) is not None else ""


def _no_mark(sample: bytes, path: Path, encoding: str) -> DataError:
    text = sample[:GUESSED_BYTES].decode(encoding, "replace")
    fix = _("Save the file as UTF-8, or name its encoding: {way}").format(
        way=f"--encoding {encoding}: {_excerpt(text, 0)}"
    )
    found = _("zero bytes, as in UTF-16 without a byte-order mark")
    return DataError(_("The encoding of this text file is not known."), where=path, found=found, fix=fix)


def _is_damaged_utf8(sample: bytes) -> bool:
    """Return whether most characters beyond ASCII are valid UTF-8: then only the damaged rows are rejected."""
    text = sample.decode("utf-8", "surrogateescape")
    damaged = len(UNDECODED.findall(text))
    return sum(map(len, BEYOND_ASCII.findall(text))) >= 2 * damaged


# Scripts


def _letters(text: str) -> str:
    """Return the letters beyond ASCII, of the first EXAMINED characters beyond ASCII."""
    return "".join(filter(str.isalpha, "".join(BEYOND_ASCII.findall(text))[:EXAMINED]))


def _share(letters: str, *ranges: tuple[str, str]) -> float:
    """Return the share of the letters in `ranges`, each given by its first and its last character."""
    inside = sum(any(first <= letter <= last for first, last in ranges) for letter in letters)
    return inside / max(len(letters), 1)


def _is_korean(letters: str) -> bool:
    # cp949 has many syllables beyond euc_kr that hardly any word contains; euc_kr spells them with 8 bytes.
    common = [letter for letter in letters if len(letter.encode("euc_kr", "ignore")) == 2]
    return _share("".join(common), HANGUL) * len(common) >= SHARE * len(letters)


def _is_japanese(letters: str) -> bool:
    return _share(letters, KANA) >= KANA_SHARE and _share(letters, KANA, HAN, ITERATION) >= SHARE


def _is_chinese(letters: str) -> bool:
    codes = [letter.encode("gb2312", "ignore") for letter in letters]
    return sum(b"\xa1" <= code[:1] <= b"\xd7" for code in codes) >= SHARE * len(letters)  # characters in common use


def _is_traditional_chinese(letters: str) -> bool:
    codes = [letter.encode("cp950", "ignore") for letter in letters]
    return sum(b"\xa4" <= code[:1] <= b"\xc6" for code in codes) >= SHARE * len(letters)  # likewise


# The first of several that fit is taken: Korean and Japanese bytes are also bytes of rare Chinese texts, not conversely.
SCRIPTS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "cp949": (noted("Korean"), _is_korean),
    "euc_jp": (noted("Japanese"), _is_japanese),
    "euc_jis_2004": (noted("Japanese"), _is_japanese),
    "cp932": (noted("Japanese"), _is_japanese),
    "gb18030": (noted("Chinese"), _is_chinese),
    "cp950": (noted("Traditional Chinese"), _is_traditional_chinese),
}


def _fits(text: str | None, encoding: str) -> bool:
    letters = _letters(text or "")
    runs = [len(run) for run in BEYOND_ASCII.findall(text or "")]
    in_runs = sum(length for length in runs if length > 1)
    return bool(letters) and in_runs >= RUN_SHARE * sum(runs) and SCRIPTS[encoding][1](letters)


# Refusal


def _refusal(sample: bytes, path: Path, fitting: list[str]) -> DataError:
    """Return the error for a file of unknown encoding, with the two likeliest encodings and a decoded line of each."""
    text = sample.decode("utf-8", "surrogateescape")
    damage = UNDECODED.search(text)
    before = text[: damage.start()] if damage else ""
    head, decoded = sample[:GUESSED_BYTES], dict[str, str]()  # text -> encoding; equal texts are one choice
    for name in (*fitting, *_suggestions(head)):
        decoded.setdefault(head.decode(name, "replace"), name)
    first, second = islice(chain(decoded, ("",)), 2)
    at = next((at for at, (one, other) in enumerate(zip(first, second, strict=False)) if one != other), 0)
    ways = [f"--encoding {decoded[text]}: {_excerpt(text, at)}" for text in (first, second) if text]
    fix = _("Save the file as UTF-8, or name its encoding. The likeliest, with a line of the file:")
    more = _("With --encoding utf-8, only the rows with such bytes are rejected.")
    found = _("bytes that are not UTF-8, the first in line {line}").format(line=before.count("\n") + 1)
    what = _("The encoding of this text file is not known.")
    return DataError(what, where=path, found=found, fix="\n".join((fix, *ways, more)))


def _excerpt(text: str, at: int) -> str:
    """Return the part around `at` of the line at `at`."""
    start = max(text.rfind("\n", 0, at) + 1, at - SHOWN // 3)
    shown = text[start : start + SHOWN].partition("\n")[0]
    return "".join(character if character.isprintable() else " " for character in shown).strip()


def _suggestions(sample: bytes) -> Iterator[str]:
    """Yield encodings of the sample, the likeliest first; at least two give different texts."""
    for name in SCRIPTS:
        text = sample.decode(name, "replace")
        if text.count("\ufffd") <= DAMAGED_SHARE * len(text) and _fits(text.replace("\ufffd", ""), name):
            yield name
    if _share(_letters(_decoded(sample, "gb18030", True) or ""), HAN) >= SHARE:  # characters in rare use
        yield "gb18030"
    guesses = [name for name in _guesses(sample) if name not in SCRIPTS]
    if guesses and _is_latin(_letters(sample.decode(guesses[0], "ignore"))) and _decodes(sample, WESTERN):
        yield WESTERN  # by far the most frequent of the encodings of Latin letters
    yield from guesses
    yield from (name for name in OTHERS if _decodes(sample, name))


def _guesses(sample: bytes) -> list[str]:
    """Return the guesses of charset-normalizer; of those that fit about as well, the pages of Windows come first."""
    import charset_normalizer  # only files of unknown encoding need it

    matches = [match for match in charset_normalizer.from_bytes(sample) if not match.encoding.startswith("utf")]
    return [match.encoding for match in sorted(matches, key=lambda match: _rank(match, matches[0]))]


def _rank(match: "CharsetMatch", best: "CharsetMatch") -> int:
    """Return the order of a guess: 0 for a page of Windows that fits about as well as the best guess."""
    is_close = match.chaos <= best.chaos + CLOSE and match.coherence >= best.coherence - CLOSE
    return 0 if is_close and match.encoding.startswith("cp125") else 1 if is_close else 2


def _decodes(sample: bytes, encoding: str) -> bool:
    return _decoded(sample, encoding, True) is not None


def _is_latin(letters: str) -> bool:
    return all(unicodedata.name(letter, "").startswith("LATIN") for letter in letters)
