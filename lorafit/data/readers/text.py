"""Text of data files: decompression by extension, and automatic detection of the encoding."""

import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TextIO, cast

import zstandard

SAMPLE = 1 << 22  # bytes that the detection of the encoding examines
CHUNK = 1 << 18  # bytes per read
BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
CHINESE_SHARE = 0.9  # of the non-ASCII characters; other text does not reach this share by chance
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)  # errors of a damaged compressed file


class _ZstdFile(io.RawIOBase):
    """The decompressed content of a .zst file.

    Reading a truncated file raises EOFError; the library's own reader does not report the truncation.
    """

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
        """Decompress more data into `_ready`; return False at the end of the file."""
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


DECOMPRESSORS: dict[str, Callable[[Path], BinaryIO]] = {".gz": _open_gzip, ".zst": _open_zstd}


def kind_of(path: Path) -> str:
    """Return the extension that identifies the content: ".json" for `a.JSON` and for `a.json.gz`."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in DECOMPRESSORS else suffix


def open_bytes(path: Path) -> BinaryIO:
    """Open the file for reading its decompressed content."""
    unpack = DECOMPRESSORS.get(path.suffix.lower())
    return path.open("rb") if unpack is None else unpack(path)


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """Open the file as text.

    Bytes that cannot be decoded become lone surrogates. formats.py rejects the rows that contain them.
    """
    encoding = encoding_of(path)
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, errors="surrogateescape", newline=newline)


def encoding_of(path: Path) -> str:
    """Return the encoding of the file, detected from its first SAMPLE bytes.

    The order is: the encoding of a byte order mark; UTF-8 if the sample is valid UTF-8; GB18030 if the sample decodes
    to Chinese; else UTF-8, with errors.
    """
    with open_bytes(path) as file:
        try:
            sample = file.read(SAMPLE)
        except DAMAGED:  # reported when the rows are read
            return "utf-8"
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if sample.startswith(mark):
            return encoding
    return "utf-8" if _decoded(sample, "utf-8") is not None or not _is_gb18030(sample) else "gb18030"


def _decoded(sample: bytes, encoding: str) -> str | None:
    """Return the sample as text, without a character cut at its end; None if it is not in this encoding."""
    try:
        return sample.decode(encoding)
    except UnicodeDecodeError as error:
        cut = len(sample) == SAMPLE and error.start >= len(sample) - 4
        return sample[: error.start].decode(encoding) if cut else None


def _is_gb18030(sample: bytes) -> bool:
    text = _decoded(sample, "gb18030")
    beyond = [character for character in text or "" if character > "\x7f"]
    common = "".join(beyond).encode("gb2312", "ignore")  # two bytes per character in common use
    return len(common) >= 2 * CHINESE_SHARE * len(beyond) > 0
