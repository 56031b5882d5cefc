"""Text of data files: decompression by extension, and decoding."""

import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TextIO, cast

import zstandard

from lorafit.data.readers.encoding import encoding_of
from lorafit.data.readers.reading import Reading

SAMPLE = 1 << 22  # bytes that the detection of the encoding examines
CHUNK = 1 << 18  # bytes per read
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


def open_text(path: Path, reading: Reading, newline: str | None = None) -> TextIO:
    """Open the file as text.

    Bytes that cannot be decoded become lone surrogates. formats.py rejects the rows that contain them. Raises DataError
    if the encoding is unknown.
    """
    with open_bytes(path) as file:
        try:
            sample = file.read(SAMPLE)
        except DAMAGED:  # reported when the rows are read
            sample = b""
    encoding = encoding_of(sample, len(sample) == SAMPLE, path, reading)
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, errors="surrogateescape", newline=newline)
