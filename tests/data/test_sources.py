"""Data sources: the values and line numbers of rows in files, folders and hubs, slices, and errors for broken rows."""

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet
from support.fake_hub import FakeHub
from support.paths import LAWYER_LLAMA
from support.rows import ROWS, as_csv

from lorafit.data import sources
from lorafit.data.conversation import BadRow
from lorafit.data.formats import recognize_format
from lorafit.data.readers.json_reader import CHUNK
from lorafit.data.readers.row import Broken
from lorafit.data.sources import read_rows
from lorafit.errors import DataError, HubError


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def values(path: Path, split: str = "train") -> list[object]:
    return [row.value for row in read_rows(str(path), split)]


def line_numbers(path: Path) -> list[int]:
    return [row.line for row in read_rows(str(path), "train")]


def with_chunk_edge(array: str, place: int, chunks: int = 1) -> str:
    """Return the JSON `array` with a long text as its first element, so that a chunk ends `place` characters behind it.

    The text is so long that the reader needs `chunks` reads.
    """
    padding = '["' + "x" * (chunks * CHUNK - place - 4) + '",'
    assert len(padding) + place == chunks * CHUNK
    return padding + array[1:]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_array_is_read_element_by_element_with_lines(tmp_path: Path, encoding: str, indent: int | None) -> None:
    text = json.dumps(ROWS, ensure_ascii=False, indent=indent)
    starts = [number for number, line in enumerate(text.split("\n"), 1) if line == " {"]
    for padded in (text, *(with_chunk_edge(text, place) for place in range(0, len(text), 37))):
        rows = list(read_rows(str(write(tmp_path / "a.json", padded, encoding)), "train"))[-len(ROWS) :]
        assert [row.value for row in rows] == ROWS
        assert [row.line for row in rows] == (starts if indent else [1] * len(ROWS))


@pytest.mark.parametrize("chunks", [1, 2])
def test_numbers_at_a_chunk_edge_are_read_whole(tmp_path: Path, chunks: int) -> None:
    numbers = [1234567.25e-3, -17, True, None, 1e300, "é\n"]
    text = json.dumps(numbers)
    assert values(write(tmp_path / "a.json", text)) == numbers
    for place in range(len(text)):
        path = write(tmp_path / "a.json", with_chunk_edge(text, place, chunks))
        assert values(path)[1:] == numbers, f"{text[1:][:place]}|{text[1:][place:]}"


def test_objects_one_a_line_are_read_from_json_and_from_jsonl(tmp_path: Path) -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    for name in ("a.json", "a.jsonl"):
        path = write(tmp_path / name, text.replace("\n", "\n\n", 1))
        assert values(path) == ROWS
        assert line_numbers(path) == [1, *range(3, 22)]


def test_csv_records_keep_the_line_where_they_begin(tmp_path: Path) -> None:
    rows = [{"question": "一\n二", "answer": 'a,"b"'}, {"question": "三", "answer": "x" * 200_000}]
    path = write(tmp_path / "a.CSV", as_csv(rows), "utf-8-sig")
    assert values(path) == rows
    assert line_numbers(path) == [2, 4]


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


def test_hub_rows_are_sliced_alike_and_numbered_in_the_whole_split(tmp_path: Path) -> None:
    """Runs in a separate process, because `datasets` reads HF_HOME when it is imported."""
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "test.jsonl", "".join(json.dumps({"i": i}) + "\n" for i in range(10)))
    script = (
        "import json, sys; from lorafit.data.sources import read_rows\n"
        "rows = list(read_rows('owner/name', 'test[80%:]', endpoint=sys.argv[1]))\n"
        "print(json.dumps([[row.value, row.file, row.line] for row in rows]))"
    )
    environ = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
    with FakeHub(datasets={"owner/name": tmp_path / "data"}).serve() as hub:
        command = [sys.executable, "-c", script, hub.address]
        done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[{"i": i}, "owner/name:test", i + 1] for i in (8, 9)]


def test_a_hub_out_of_reach_is_a_hub_error() -> None:
    with pytest.raises(HubError):
        read_rows("owner/name", "train", endpoint="http://127.0.0.1:9")


def test_the_demo_data_is_read_by_its_name() -> None:
    rows = list(read_rows("demo", "train"))
    assert len(rows) >= 200
    assert all(recognize_format(row.value).format == "alpaca" for row in rows)


UNREADABLE: dict[str, tuple[str, bytes, str, str]] = {
    "no such file": ("b.json", b"", "Data file not found", "a.json"),
    "empty file": ("a.json", b"", "is empty", ""),
    "only spaces": ("a.json", b" \n", "no row", ""),
    "empty array": ("a.json", b"[]", "no row", ""),
    "header only": ("a.csv", b"question,answer\n", "no row", ""),
    "unknown extension": ("a.parq", b"x", "Unsupported data file format", ".json, .jsonl"),
    "a bare word": ("a.json", b"hello", "neither", "a.json:1"),
    "two equal columns": ("a.csv", b"q,q\n1,2\n", "same name", "a.csv:1"),
    "no good row behind a damaged one": ("a.json", b'[{"a": 1}, ' + b"[" * 100_000, "cannot be read", "recursion"),
    "no parquet": ("a.parquet", b"PAR1 x", "cannot be opened", "a.parquet"),
    "no arrow": ("a.arrow", b"x" * 100, "cannot be opened", "a.arrow"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "what", "named"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_without_any_row_is_an_error_with_a_remedy(
    tmp_path: Path, name: str, content: bytes, what: str, named: str
) -> None:
    (tmp_path / name.replace("b.json", "a.json")).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_rows(str(tmp_path / name), "train"))
    assert what in caught.value.what
    assert named in str(caught.value)
    assert str(tmp_path) in str(caught.value.where)
    assert caught.value.fix


# File name, content, good values, and for each broken row its line and a part of the error text.
BROKEN: dict[str, tuple[str, bytes, list[object], list[tuple[int, str]]]] = {
    "cut array": ("a.json", b'[\n{"a": 1},\n{"a": 2', [{"a": 1}], [(3, "missing comma")]),
    "cut behind an element": ("a.json", b'[\n{"a": 1},\n', [{"a": 1}], [(3, "end of file")]),
    "missing comma": ("a.json", b'[{"a": 1}\n{"a": 2}]', [{"a": 1}, {"a": 2}], []),
    "broken element": ("a.json", b'[{"a": 1},\n{"a": \n nul},\n{"a": 3}]', [{"a": 1}, {"a": 3}], [(2, "in line 3")]),
    "open string": ("a.json", b'[{"a": 1},\n{"a": "x},\n{"a": 3}]', [{"a": 1}, {"a": 3}], [(2, "control character")]),
    "in one line": ("a.json", b'[{"a": 1}, {"a": x}, {"b": 2}, {"a": 3}]', [{"a": 1}, {"a": 3}], [(1, "missing value, or a value that is not JSON")]),
    "first element": ("a.json", b'[{"a" 1}, {"a": 2}]', [{"a": 2}], [(1, "missing colon")]),
    "inner object": ("a.json", b'[{"a": 1},\n{"a":\n[,\n{"r": 1}]},\n{"a": 3}]', [{"a": 1}, {"a": 3}], [(2, "missing value")]),
    "rest behind the array": ("a.json", b"[1]\n]", [1], [(2, "missing value")]),
    "huge number": ("a.json", b'[{"a": 1' + b"1" * 5000 + b'}, {"a": 2}]', [{"a": 2}], [(1, "4300")]),
    "twice a key": ("a.json", b'[{"a": 1, "a": 2}, {"a": 3}]', [{"a": 3}], [(1, "repeated key `a`")]),
    "twice a key inside": ("a.jsonl", b'{"x": [{"a": 1, "a": 2}]}\n1', [1], [(1, "repeated key `a`")]),
    "NUL bytes": ("a.jsonl", b'{"a": "x\0y"}\n{"a": 1}\n\0\n', [{"a": 1}], [(1, "control"), (3, "missing value")]),
    "broken line": ("a.jsonl", b'{"a": 1}\n{"a": \n2', [{"a": 1}, 2], [(2, "missing value, or a value that is not JSON in line 2")]),
    "more in a line": ("a.jsonl", b"1 2\n3", [3], [(1, "extra text after the value")]),
    "deep line": ("a.jsonl", b"1\n" + b"[" * 100_000 + b"\n2", [1, 2], [(2, "recursion")]),
    "short record": ("a.csv", b"q,a\n1,2\n3\n5,6\n", [{"q": "1", "a": "2"}, {"q": "5", "a": "6"}], [(3, "field count 1")]),
    "open quote": ("a.csv", b'q,a\n1,2\n3,"4\n5,6\n', [{"q": "1", "a": "2"}, {"q": "5", "a": "6"}], [(3, "end of data")]),
    "stray quote": ("a.csv", b'q,a\n"1"x,2\n3,4\n', [{"q": "3", "a": "4"}], [(2, "expected after")]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "good", "broken"), BROKEN.values(), ids=BROKEN)
def test_a_broken_row_is_named_and_the_rest_is_read(
    tmp_path: Path, name: str, content: bytes, good: list[object], broken: list[tuple[int, str]]
) -> None:
    (tmp_path / name).write_bytes(content)
    rows = list(read_rows(str(tmp_path / name), "train"))
    assert [row.value for row in rows if not isinstance(row.value, Broken)] == good
    found = [(row.line, row.value) for row in rows if isinstance(row.value, Broken)]
    assert [line for line, _ in found] == [line for line, _ in broken]
    for (_, value), (_, words) in zip(found, broken, strict=True):
        assert words in value.found
        assert value.wanted
        with pytest.raises(BadRow, match=r"found: .*; expected: "):
            recognize_format(value)


def test_one_broken_row_of_many_costs_only_itself_whatever_the_layout(tmp_path: Path) -> None:
    for indent in (None, 0, 1):
        for at in (0, 7, 19):
            marked = [{**row, "broken": i == at} for i, row in enumerate(ROWS)]
            text = json.dumps(marked, ensure_ascii=False, indent=indent).replace("true", "tru")
            rows = list(read_rows(str(write(tmp_path / "a.json", text)), "train"))
            assert [row.value for row in rows if not isinstance(row.value, Broken)] == [
                row for row in marked if not row["broken"]
            ]
            assert sum(isinstance(row.value, Broken) for row in rows) == 1


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_encodings_are_recognised(tmp_path: Path, name: str, encoding: str) -> None:
    rows = [{"question": f"合同 {i} 的效力如何？", "answer": "自成立时生效。"} for i in range(3)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = {".json": json.dumps(rows, ensure_ascii=False), ".jsonl": lines, ".csv": as_csv(rows)}.get(
        Path(name).suffix, as_csv(rows).replace(",", "\t")
    )
    assert values(write(tmp_path / name, text, encoding)) == rows


def test_bytes_that_are_no_text_spoil_only_their_own_row(tmp_path: Path) -> None:
    good = '{"question": "合同", "answer": "有效"}\n'.encode()
    (tmp_path / "a.jsonl").write_bytes(good + good.replace("有".encode(), b"\xff\xe6") + good)
    first, second, third = read_rows(str(tmp_path / "a.jsonl"), "train")
    assert first.value == third.value == {"question": "合同", "answer": "有效"}
    with pytest.raises(BadRow, match="invalid character"):
        recognize_format(second.value)


def compress(data: bytes, suffix: str) -> bytes:
    return gzip.compress(data) if suffix == ".gz" else zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_are_read_and_a_cut_one_up_to_the_cut(tmp_path: Path, suffix: str) -> None:
    texts = {"a.json": json.dumps(ROWS, indent=1), "a.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS)}
    for name, text in texts.items():
        path = tmp_path / (name + suffix)
        path.write_bytes(compress(text.encode(), suffix) + compress(b"\n", suffix))
        assert values(path) == ROWS
    rng = random.Random(0)
    many = "".join(json.dumps({"a": rng.random()}) + "\n" for _ in range(200_000)).encode()
    (tmp_path / f"b.jsonl{suffix}").write_bytes(compress(many, suffix)[: len(many) // 4])
    rows = list(read_rows(str(tmp_path / f"b.jsonl{suffix}"), "train"))
    assert 1000 < len(rows) < 200_000
    assert isinstance(rows[-1].value, Broken)
    assert sum(isinstance(row.value, Broken) for row in rows) <= 2
    (tmp_path / f"c.jsonl{suffix}").write_bytes(b"this is not compressed")
    assert isinstance(values(tmp_path / f"c.jsonl{suffix}")[0], Broken)


def test_tables_are_read_with_row_numbers_and_sliced(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([{"question": f"问 {i}", "answer": "答", "n": i} for i in range(700)])
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    with pyarrow.ipc.new_file(tmp_path / "b.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=150)
    with pyarrow.ipc.new_stream(tmp_path / "c.arrow", table.schema) as stream:
        stream.write_table(table)
    for name in ("a.parquet", "b.arrow", "c.arrow"):
        rows = list(read_rows(str(tmp_path / name), "train[50%:]"))
        assert [row.value for row in rows] == table.to_pylist()[350:]
        assert [row.line for row in rows] == list(range(351, 701))


def test_a_damaged_group_of_a_parquet_file_is_named(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([{"a": f"{i}" * 50} for i in range(1000)])
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=500, compression="snappy")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[60:90] = b"\xff" * 30
    (tmp_path / "a.parquet").write_bytes(data)
    rows = list(read_rows(str(tmp_path / "a.parquet"), "train"))
    assert [row.line for row in rows if isinstance(row.value, Broken)] == [1]
    assert [row.line for row in rows][1:] == list(range(501, 1001))


def test_a_folder_is_all_its_data_files_by_name_and_below(tmp_path: Path) -> None:
    (tmp_path / "in/.hidden").mkdir(parents=True)
    write(tmp_path / "b.jsonl", "2\n3")
    write(tmp_path / "a.json", "[1]")
    write(tmp_path / "in/c.jsonl", "4")
    for name in ("in/.hidden/x.jsonl", "README.md", ".d.json"):
        write(tmp_path / name, "9")
    assert values(tmp_path) == [1, 2, 3, 4]
    assert values(tmp_path, "train[1:3]") == [2, 3]
    assert [Path(row.file).name for row in read_rows(str(tmp_path), "train")] == [
        "a.json",
        "b.jsonl",
        "b.jsonl",
        "c.jsonl",
    ]


def test_a_folder_with_files_named_by_split_gives_the_split_asked_for(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    write(tmp_path / "law_train-00000-of-00001.jsonl", "1")
    write(tmp_path / "dev.jsonl", "2")
    write(tmp_path / "test/a.jsonl", "3")
    assert [values(tmp_path, split) for split in ("train", "validation", "test")] == [[1], [2], [3]]
    with pytest.raises(DataError, match="No such split") as caught:
        values(tmp_path, "extra")
    assert "test, train, validation" in str(caught.value.fix)


def test_a_folder_without_data_is_refused_with_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "law.doc", "1")
    with pytest.raises(DataError) as caught:
        read_rows(str(tmp_path), "train")
    assert caught.value.found == "law.doc"


def test_several_names_are_read_one_after_the_other_and_sliced_together(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.jsonl", "1\n2"), write(tmp_path / "b.jsonl", "3\n4")
    both = f"{one},{two}"
    assert [row.value for row in read_rows(both, "train[1:3]")] == [2, 3]
    assert [row.value for row in read_rows(f"{both}, demo", "train[:5]")][:4] == [1, 2, 3, 4]
    name_with_comma = write(tmp_path / "x,y.jsonl", "5")
    assert values(name_with_comma) == [5]


def test_modelscope_data_are_files_in_the_folder_that_its_client_fetches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "train.jsonl", "1\n2")
    monkeypatch.setattr(sources, "fetch_modelscope_data", lambda name: tmp_path / name.partition("/")[2])
    assert [row.value for row in read_rows("owner/.", "train[1:]", hub="modelscope")] == [2]


def test_modelscope_without_its_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)  # for Python, a package that is not installed
    with pytest.raises(HubError, match="package that is not installed"):
        read_rows("owner/name", "train", hub="modelscope")


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
