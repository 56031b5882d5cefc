"""Randomly damaged data files: reading them gives rows or errors with file and line, and never another exception."""

import functools
import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import openpyxl
import pyarrow
import pytest
from pyarrow import parquet
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


def sort_rows(name: str, formats: list[str], reasons: list[str]) -> None:
    """Add the formats of the good rows of the data `name` to `formats`, and the reasons of the others to `reasons`."""
    for row in read_rows(name, "train"):
        try:
            formats.append(recognize_format(row.value).format)
        except BadRow as bad:
            reasons.append(bad.reason)


@pytest.mark.parametrize(
    "seeds", [range(200), pytest.param(range(200, 20_000), marks=pytest.mark.slow)], ids=["200", "20000"]
)
def test_damaged_files_give_rows_or_named_errors_and_nothing_else(tmp_path: Path, seeds: range) -> None:
    good, reasons, places = list[str](), list[str](), list[str]()
    for seed in seeds:
        name, data = mutated(seed)
        path = tmp_path / f"damaged{name}"
        path.write_bytes(data)
        try:
            sort_rows(str(path), good, reasons)
        except DataError as error:
            places.append(str(error.where))
    assert min(len(good), len(reasons)) > len(seeds)
    assert all(reasons)
    assert all(place.startswith(str(tmp_path / "damaged.")) for place in places)


@functools.cache
def packed_seeds() -> dict[str, bytes]:
    """Return small files of the types that are archives or tables, and texts around the rows or in rare encodings."""
    pairs = [(str(row["instruction"]), str(row["output"])) for row in ROWS]
    table, book, packed = io.BytesIO(), io.BytesIO(), io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([{"question": q, "answer": a} for q, a in pairs]), table)
    workbook = openpyxl.Workbook()
    sheet = workbook.active
    assert sheet is not None
    for number, pair in enumerate([("question", "answer"), *pairs]):
        sheet.append([*pair, number, "=1+1"])
    workbook.save(book)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", lines)
        archive.writestr("b.json", json.dumps(ROWS))
        archive.writestr("c.xlsx", book.getvalue())
    wrapped = json.dumps({"version": 1, "data": ROWS, "more": [1]}, indent=1)
    entries = {"damaged": {"file_name": "damaged.jsonl", "columns": {"prompt": "instruction", "response": "output"}}}
    korean = as_csv([{"question": "도서관은 몇 시에 문을 닫나요?", "answer": "저녁 여덟 시에 닫습니다."}] * 9)
    return {".xlsx": book.getvalue(), ".zip": packed.getvalue(), ".parquet": table.getvalue(), ".json": wrapped.encode(),
            ".jsonl": wrapped.encode(), ".csv": ("sep=,\n" + korean).encode("cp949"),
            "": json.dumps(entries).encode()}  # fmt: skip


@functools.cache
def xml_members() -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(packed_seeds()[".xlsx"])) as book:
        return [(name, book.read(name)) for name in book.namelist()]


def mutated_archive(suffix: str, rng: random.Random) -> bytes:
    """Return an archive with one to three edits: of its bytes, or of a member before it is packed."""
    data = packed_seeds()[suffix]
    edit = rng.choice([cut, flip, drop, double, insert])
    if suffix != ".xlsx" or rng.random() < 0.3:
        for _ in range(rng.randrange(1, 4)):
            data = edit(data, rng) or b" "
        return data
    members, chosen, target = xml_members(), rng.randrange(len(xml_members())), io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for number, (name, member) in enumerate(members):
            archive.writestr(name, (edit(member, rng) if number == chosen else member) or b" ")
    return target.getvalue()


@pytest.mark.parametrize(
    "seeds", [range(150), pytest.param(range(150, 10_000), marks=pytest.mark.slow)], ids=["150", "10000"]
)
def test_damaged_archives_and_rare_shapes_give_rows_or_named_errors_and_nothing_else(
    tmp_path: Path, seeds: range
) -> None:
    (tmp_path / "damaged.jsonl").write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS))
    good, reasons, errors = list[str](), list[str](), list[DataError]()
    for seed in seeds:
        rng = random.Random(seed)
        suffix = rng.choice(list(packed_seeds()))
        path = tmp_path / f"damaged{suffix or '.jsonl'}"
        (path if suffix else tmp_path / "dataset_info.json").write_bytes(mutated_archive(suffix, rng))
        name = path if suffix else tmp_path / "damaged"
        try:
            sort_rows(str(name), good, reasons)
        except DataError as error:
            errors.append(error)
        (tmp_path / "dataset_info.json").unlink(missing_ok=True)
    assert min(len(good), len(reasons), len(errors)) > len(seeds) // 10
    assert all(reasons)
    assert all(error.what and error.fix and str(tmp_path) in str(error.where) for error in errors)
