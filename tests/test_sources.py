"""Are files read rightly, with each row's line, and are broken ones named by file and line?"""

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from lorafit.data import readers, sources
from lorafit.data.formats import BadRow, recognise
from lorafit.data.sources import Row, read_rows
from lorafit.errors import DataError, HubError

LAWYER_LLAMA = Path(__file__).parents[2] / "shared/data/lawyer_llama"
ROWS = [
    {"instruction": f"问题 {i}，“为什么”？\n说明\\", "output": f'回答 {i} "是"\t😀', "history": [["a", "b"]] * (i % 3)}
    for i in range(20)
]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def values(path: Path, split: str = "train") -> list[object]:
    return [row.value for row in read_rows(str(path), split)]


def places(path: Path) -> list[int]:
    return [row.line for row in read_rows(str(path), "train")]


def as_csv(rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("chunk", [1, 50, 1 << 18])
def test_a_json_array_is_read_element_by_element_with_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, indent: int | None, chunk: int
) -> None:
    monkeypatch.setattr(readers, "CHUNK", chunk)
    text = json.dumps(ROWS, ensure_ascii=False, indent=indent)
    rows = list(read_rows(str(write(tmp_path / "a.json", text, encoding)), "train"))
    assert [row.value for row in rows] == ROWS
    starts = [number for number, line in enumerate(text.split("\n"), 1) if line == " {"]
    assert [row.line for row in rows] == (starts if indent else [1] * len(ROWS))


def test_numbers_at_a_chunk_edge_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "CHUNK", 1)
    numbers = [1234567.25e-3, -17, True, None, 1e300, "é\n"]
    assert values(write(tmp_path / "a.json", json.dumps(numbers))) == numbers


def test_objects_one_a_line_are_read_from_json_and_from_jsonl(tmp_path: Path) -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    for name in ("a.json", "a.jsonl"):
        path = write(tmp_path / name, text.replace("\n", "\n\n", 1))
        assert values(path) == ROWS
        assert places(path) == [1, *range(3, 22)]


def test_csv_records_keep_the_line_where_they_begin(tmp_path: Path) -> None:
    rows = [{"question": "一\n二", "answer": 'a,"b"'}, {"question": "三", "answer": "x" * 200_000}]
    path = write(tmp_path / "a.CSV", as_csv(rows), "utf-8-sig")
    assert values(path) == rows
    assert places(path) == [2, 4]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", range(20)),
        ("train[:5]", range(5)),
        ("train[15:]", range(15, 20)),
        ("train[3:9]", range(3, 9)),
        ("train[10%:20%]", range(2, 4)),
        ("train[-3:]", range(17, 20)),
        ("train[50%:-2]", range(10, 18)),
        ("train[:1000]", range(20)),
    ],
)
def test_slices_choose_the_rows_that_datasets_would(tmp_path: Path, split: str, expected: range) -> None:
    for path in (
        write(tmp_path / "a.json", json.dumps(list(range(20)))),
        write(tmp_path / "a.jsonl", "\n".join(map(str, range(20)))),
    ):
        assert values(path, split) == list(expected)


def test_hub_rows_are_sliced_alike_and_numbered_in_the_whole_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_load", lambda name, split, endpoint: [{"i": i} for i in range(10)])
    assert list(read_rows("owner/name", "test[80%:]")) == [Row({"i": i}, "owner/name:test", i + 1) for i in (8, 9)]


def test_a_hub_out_of_reach_is_a_hub_error() -> None:
    with pytest.raises(HubError):
        read_rows("owner/name", "train", endpoint="http://127.0.0.1:9")


def test_the_demo_data_is_read_by_its_name() -> None:
    rows = list(read_rows("demo", "train"))
    assert len(rows) >= 200
    assert all(recognise(row.value)[0] == "alpaca" for row in rows)


BROKEN: dict[str, tuple[str, bytes, str, str]] = {
    "no such file": ("b.json", b"", "no such data file", "a.json"),
    "empty file": ("a.json", b"", "is empty", ""),
    "only spaces": ("a.json", b" \n", "no row", ""),
    "empty array": ("a.json", b"[]", "no row", ""),
    "header only": ("a.csv", b"question,answer\n", "no row", ""),
    "unknown extension": ("a.parq", b"x", "Unknown kind", ".json, .jsonl, .csv"),
    "cut array": ("a.json", b'[\n{"a": 1},\n{"a": 2', "cut off", "a.json:3"),
    "cut behind an element": ("a.json", b'[\n{"a": 1},\n', "does not go on", "a.json:3"),
    "missing comma": ("a.json", b'[{"a": 1}\n{"a": 2}]', "does not go on", "a.json:2"),
    "broken element": ("a.json", b'[{"a": 1},\n{"a": \n nul},\n{"a": 3}]', "not valid JSON", "a.json:3"),
    "open string": ("a.json", b'[{"a": 1},\n{"a": "x},\n{"b": 3}]', "not valid JSON", "a.json:2"),
    "rest behind the array": ("a.json", b"[1]\n]", "behind the end", "a.json:2"),
    "a bare word": ("a.json", b"hello", "neither", "a.json:1"),
    "deep nesting": ("a.json", b"[" * 100_000, "not valid JSON", "a.json:1"),
    "huge number": ("a.json", b"[1, " + b"1" * 5000 + b"]", "not valid JSON", "a.json:1"),
    "broken line": ("a.jsonl", b'{"a": 1}\n{"a": \n', "not valid JSON", "a.jsonl:2"),
    "deep line": ("a.jsonl", b"1\n" + b"[" * 100_000, "not valid JSON", "a.jsonl:2"),
    "short record": ("a.csv", b"q,a\n1,2\n3\n", "does not fit", "a.csv:3"),
    "open quote": ("a.csv", b'q,a\n1,2\n3,"4\n5\n', "not valid CSV", "a.csv:3"),
    "two equal columns": ("a.csv", b"q,q\n1,2\n", "same name", "a.csv:1"),
    "gb18030": ("a.jsonl", '1\n"合同"\n'.encode("gb18030"), "not UTF-8", "a.jsonl:2"),
    "utf-16": ("a.json", "[1]".encode("utf-16"), "not UTF-8", "a.json:1"),
    "latin-1 csv": ("a.csv", "q,a\né,b\n".encode("latin-1"), "not UTF-8", "a.csv:2"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "what", "named"), BROKEN.values(), ids=BROKEN)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, what: str, named: str) -> None:
    (tmp_path / name.replace("b.json", "a.json")).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_rows(str(tmp_path / name), "train"))
    assert what in caught.value.what
    assert named in str(caught.value)
    assert str(tmp_path) in str(caught.value.where)
    assert caught.value.fix


def test_a_folder_is_refused_with_its_data_files(tmp_path: Path) -> None:
    write(tmp_path / "law.jsonl", "1")
    with pytest.raises(DataError) as caught:
        read_rows(str(tmp_path), "train")
    assert caught.value.found == "law.jsonl"


@pytest.mark.parametrize("split", ["", "train[", "train[1]", "train[a:b]", "train[:200%]", "train[:5", "train[1:2:3]"])
def test_a_slice_that_cannot_be_parsed_is_refused(split: str) -> None:
    with pytest.raises(DataError, match="slice"):
        read_rows("demo", split)


def test_a_file_has_no_split_but_train_and_a_slice_behind_its_end_has_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", "[1, 2]")
    with pytest.raises(DataError, match="one split"):
        read_rows(str(path), "test")
    with pytest.raises(DataError, match="no row"):
        values(path, "train[5:]")


@pytest.mark.skipif(not LAWYER_LLAMA.is_dir(), reason="shared/data/lawyer_llama is absent")
def test_real_files_are_read_as_json_reads_them() -> None:
    for path in sorted(LAWYER_LLAMA.glob("*.json")):
        assert values(path) == json.loads(path.read_text("utf-8"))


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


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [cut, flip, drop, double, insert, retype]


def mutated(seed: int) -> tuple[str, bytes]:
    """A file's extension and its content, spoilt in one to three places."""
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
def test_spoilt_files_give_rows_or_named_errors_and_nothing_else(tmp_path: Path, seeds: range) -> None:
    good, reasons, places = 0, [], []
    for seed in seeds:
        name, data = mutated(seed)
        path = tmp_path / f"spoilt{name}"
        path.write_bytes(data)
        try:
            for row in read_rows(str(path), "train"):
                try:
                    recognise(row.value)
                    good += 1
                except BadRow as bad:
                    reasons.append(bad.reason)
        except DataError as error:
            places.append(str(error.where))
    assert min(good, len(reasons), len(places)) > 0
    assert all(reasons)
    assert all(place.startswith(str(tmp_path / "spoilt.")) for place in places)
