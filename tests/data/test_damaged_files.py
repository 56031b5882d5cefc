"""Randomly damaged data files: reading them gives rows or errors with file and line, and never another exception."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from support.rows import ROWS, as_csv

from lorafit.data.conversation import BadRow
from lorafit.data.formats import recognize_format
from lorafit.data.sources import read_rows
from lorafit.errors import DataError


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


def drop(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.randrange(1, 30) :]


def double(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[: at + rng.randrange(1, 200)] + data[at:]


def insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    words = [
        b"\0",
        b'"',
        b"null",
        b"[[[",
        b"}",
        b"\\ud800",
        b"\\",
        b",",
        b"\n",
        b"\r",
        b"\xef\xbb\xbf",
        b"NaN",
        b"[" * 5000,
    ]
    return data[:at] + rng.choice(words) + data[at:]


def retype(data: bytes, rng: random.Random) -> bytes:
    words = [b"null", b"1e999", b"[]", b'{"a": {}}', b'""', b"true", b'"\\ud83d"']
    return data.replace(rng.choice([b'"output"', b'"b"', b'"a"', b"[["]), rng.choice(words), rng.randrange(1, 4))


def recode(data: bytes, rng: random.Random) -> bytes:
    """Encode some of the lines differently."""
    lines = data.decode("utf-8", "replace").splitlines(keepends=True)
    coding = rng.choice(["gb18030", "utf-16-le", "latin-1", "utf-8-sig"])
    return b"".join(line.encode(coding if rng.random() < 0.3 else "utf-8", "replace") for line in lines)


def repeat_key(data: bytes, rng: random.Random) -> bytes:
    return data.replace(b'"output":', b'"output": "x", "output":', rng.randrange(1, 3))


def insert_huge_value(data: bytes, rng: random.Random) -> bytes:
    """Replace a value by a huge number, a huge text or deep nesting."""
    huge = rng.choice([b"9" * 5000, b'"' + "长".encode() * 100_000 + b'"', b'{"a":' * 3000, b"[" * 3000 + b"]" * 3000])
    return data.replace(b"[]", huge, 1)


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    cut, flip, drop, double, insert, retype, recode, repeat_key, insert_huge_value,
]  # fmt: skip


def mutated(seed: int) -> tuple[str, bytes]:
    """Return the extension and the content of a file that is damaged in one to three places."""
    rng = random.Random(seed)
    name = rng.choice([".json", ".jsonl", ".csv"])
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    table = as_csv([{"question": str(row["instruction"]), "answer": str(row["output"])} for row in ROWS])
    data = {".json": json.dumps(ROWS, indent=1), ".jsonl": lines, ".csv": table}[name].encode()
    for _ in range(rng.randrange(1, 4)):
        data = rng.choice(MUTATIONS)(data, rng) or b" "
    return name, data


@pytest.mark.parametrize(
    "seeds", [range(200), pytest.param(range(200, 20_000), marks=pytest.mark.slow)], ids=["200", "20000"]
)
def test_damaged_files_give_rows_or_named_errors_and_nothing_else(tmp_path: Path, seeds: range) -> None:
    good, reasons, places = 0, [], []
    for seed in seeds:
        name, data = mutated(seed)
        path = tmp_path / f"damaged{name}"
        path.write_bytes(data)
        try:
            for row in read_rows(str(path), "train"):
                try:
                    recognize_format(row.value)
                    good += 1
                except BadRow as bad:
                    reasons.append(bad.reason)
        except DataError as error:
            places.append(str(error.where))
    assert min(good, len(reasons)) > len(seeds)
    assert all(reasons)
    assert all(place.startswith(str(tmp_path / "damaged.")) for place in places)
