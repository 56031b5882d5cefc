"""How do a data file's bytes become text? Compressed or not, and in which encoding; both are found, not asked for."""

import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TextIO, cast

import zstandard

SAMPLE = 1 << 22  # bytes that the encoding is told from
CHUNK = 1 << 18  # bytes
MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
CHINESE_SHARE = 0.9  # of the characters beyond ASCII: more than any other text gives by chance
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)  # what a broken compressed file raises


class _ZstdFile(io.RawIOBase):
    """A .zst file, unpacked. EOFError when it was cut off, which the library's own reader passes over in silence."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        self._started, self._ready = False, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer))
        while not self._ready and self._read_on():
            pass
        taken, self._ready = self._ready[: len(view)], self._ready[len(view) :]
        view[: len(taken)] = taken
        return len(taken)

    def _read_on(self) -> bool:
        """Unpack some more into `_ready`; False at the end of the file."""
        packed = self._unpacker.unused_data if self._unpacker.eof else b""
        packed = packed or self._file.read(CHUNK)
        if self._unpacker.eof:
            if not packed:
                return False
            self._unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()  # the next frame
        elif not packed:
            raise EOFError("the compressed file was cut off")
        self._ready = self._unpacker.decompress(packed)
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


def _open_gzip(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb"))


def _open_zstd(path: Path) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_ZstdFile(path), CHUNK))


UNPACKERS: dict[str, Callable[[Path], BinaryIO]] = {".gz": _open_gzip, ".zst": _open_zstd}


def kind_of(path: Path) -> str:
    """The extension that tells what is in the file: ".json" of `a.JSON` and of `a.json.gz`."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in UNPACKERS else suffix


def open_bytes(path: Path) -> BinaryIO:
    """The file's content, unpacked."""
    unpack = UNPACKERS.get(path.suffix.lower())
    return path.open("rb") if unpack is None else unpack(path)


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """The file as text. Bytes that are none become lone surrogates, which formats.py refuses row by row."""
    encoding = encoding_of(path)
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, errors="surrogateescape", newline=newline)


def encoding_of(path: Path) -> str:
    """By its mark; UTF-8 where the beginning is; GB18030 where it is Chinese in that; else UTF-8 with broken places."""
    with open_bytes(path) as file:
        try:
            sample = file.read(SAMPLE)
        except DAMAGED:  # told when the rows are read
            return "utf-8"
    for mark, encoding in MARKS.items():
        if sample.startswith(mark):
            return encoding
    return "utf-8" if _decoded(sample, "utf-8") is not None or not _is_gb18030(sample) else "gb18030"


def _decoded(sample: bytes, encoding: str) -> str | None:
    """The sample as text, but for a character cut at its end; None when it is not in this encoding."""
    try:
        return sample.decode(encoding)
    except UnicodeDecodeError as error:
        cut = len(sample) == SAMPLE and error.start >= len(sample) - 4
        return sample[: error.start].decode(encoding) if cut else None


def _is_gb18030(sample: bytes) -> bool:
    text = _decoded(sample, "gb18030")
    beyond = [character for character in text or "" if character > "\x7f"]
    common = "".join(beyond).encode("gb2312", "ignore")  # two bytes for each character that is in daily use
    return len(common) >= 2 * CHINESE_SHARE * len(beyond) > 0
