"""Shapes of data files as spreadsheets, exports and editors write them, and the count of rows that damage costs."""

import datetime
import json
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow
import pytest
from pyarrow import parquet
from support.rows import ROWS, as_csv

from lorafit.data.formats import recognize_format
from lorafit.data.readers import archive
from lorafit.data.readers.row import Broken, rows_in
from lorafit.data.rejects import Reject, RejectFile, check_rejects
from lorafit.data.sources import Source, open_source
from lorafit.errors import DataError

PAIRS = [{"question": f"问 {i}", "answer": f"答 {i}"} for i in range(3)]


def opened(path: Path, content: str | bytes | None = None, split: str = "train") -> Source:
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return open_source(str(path), split)


def values(source: Source) -> list[Any]:
    return [row.value for row in source.rows()]


def notes(source: Source) -> str:
    return "\n".join(text for _file, text in source.reading.notes)


# CSV


@pytest.mark.parametrize("first", ["sep=;\n", "SEP=;\r\n", '"sep=;"\n'])
def test_a_line_with_the_separator_is_obeyed(tmp_path: Path, first: str) -> None:
    source = opened(tmp_path / "a.csv", f"\ufeff{first}question;answer\n有, 吗;有, 的\n")
    assert values(source) == [{"question": "有, 吗", "answer": "有, 的"}]
    assert [row.line for row in source.rows()] == [3]


def test_empty_columns_at_the_end_and_blank_records_are_left_out(tmp_path: Path) -> None:
    text = "question,answer,,\n" + "".join(f"{row['question']},{row['answer']},,\n" for row in PAIRS) + ",,,\n,,,\n"
    assert values(opened(tmp_path / "a.csv", text)) == PAIRS


def test_text_beyond_the_named_columns_is_a_broken_record(tmp_path: Path) -> None:
    [good, broken] = values(opened(tmp_path / "a.csv", "question,answer,\na,b,\nc,yes, of course\n"))
    assert good == {"question": "a", "answer": "b"}
    assert "field count 3" in broken.found


def test_a_column_without_a_name_before_the_others_is_kept(tmp_path: Path) -> None:
    [row] = values(opened(tmp_path / "a.csv", ",question,answer\n0,a,b\n"))
    assert row == {"": "0", "question": "a", "answer": "b"}


def test_a_conversation_as_json_in_a_cell_is_read_and_noted(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
    source = opened(tmp_path / "a.csv", as_csv([{"messages": json.dumps(turns)}]))
    read = recognize_format(values(source)[0])
    name, conversation = read.format, read.conversation
    assert (name, [turn.content for turn in conversation]) == ("messages", ["问", "答"])
    assert "`messages` holds JSON" in notes(source)


# JSON


@pytest.mark.parametrize("key", ["data", "train", "rows", "examples", "items", "whatever"])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_of_rows_in_one_object_is_read_and_noted(tmp_path: Path, key: str, indent: int | None) -> None:
    for name in ("a.json", *(["a.jsonl"] if indent else [])):
        text = json.dumps({"version": "1.0", "tags": ["x"], key: ROWS, "count": {"rows": 20}}, indent=indent)
        source = opened(tmp_path / name, text)
        assert values(source) == ROWS
        assert f"`{key}`" in notes(source)


def test_a_list_longer_than_the_window_is_streamed(tmp_path: Path) -> None:
    rows = ROWS * 2000
    assert values(opened(tmp_path / "a.json", json.dumps({"data": rows}))) == rows


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"id": 1, "dialog": [{"from": "human", "value": "q"}]},
        {"question": "q", "answer": "a", "sources": [{"title": "t"}]},
        {"instruction": "q", "output": "a"},
    ],
)
def test_an_object_that_is_a_row_is_one_row(tmp_path: Path, row: dict[str, Any]) -> None:
    assert values(opened(tmp_path / "a.json", json.dumps(row, indent=1))) == [row]


def test_a_line_of_json_lines_is_a_row_even_if_it_is_the_only_one(tmp_path: Path) -> None:
    row = {"turns": [{"who": "me", "said": "q"}]}
    assert values(opened(tmp_path / "a.jsonl", json.dumps(row))) == [row]


def test_objects_one_after_the_other_with_lists_in_them_are_rows(tmp_path: Path) -> None:
    rows = [{"id": i, "spoken": [{"who": "A", "text": "q"}]} for i in range(3)]
    for text in ("\n".join(map(json.dumps, rows)), "".join(json.dumps(row, indent=1) + "\n" for row in rows)):
        assert values(opened(tmp_path / "a.json", text)) == rows
    damaged = "\n".join(map(json.dumps, rows)).replace('"q"', "q", 1)
    assert values(opened(tmp_path / "a.json", damaged))[1:] == rows[1:]


def test_two_lists_of_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="several lists"):
        values(opened(tmp_path / "a.json", json.dumps({"train": PAIRS, "test": PAIRS})))


def test_json_over_several_lines_in_a_jsonl_file_is_read_and_noted(tmp_path: Path) -> None:
    for text in ("".join(json.dumps(row, indent=2) + "\n" for row in ROWS), json.dumps({"data": ROWS}, indent=2)):
        source = opened(tmp_path / "a.jsonl", text)
        assert values(source) == ROWS
        assert "several lines" in notes(source)
    assert values(opened(tmp_path / "a.jsonl", json.dumps(PAIRS, indent=2))) == PAIRS


def test_a_cut_first_line_of_json_lines_costs_only_itself(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in PAIRS]
    first, *others = values(opened(tmp_path / "a.jsonl", "\n".join([lines[0][:-9], *lines[1:]])))
    assert isinstance(first, Broken)
    assert others == PAIRS[1:]


# Damage


def damaged_array(good: int, bad: int, wrapped: bool = False) -> str:
    """Return an array with `bad` rows in one stretch that have a raw line break in a text."""
    rows = [json.dumps({"instruction": f"q {i}", "output": f"part {i}"}) for i in range(good)]
    stretch = [
        json.dumps({"instruction": f"q {i}", "output": f"part {i}"}).replace("part", "part\n") for i in range(bad)
    ]
    array = "[\n" + ",\n".join([*rows[: good // 2], *stretch, *rows[good // 2 :]]) + "\n]"
    return f'{{"data": {array}}}' if wrapped else array


@pytest.mark.parametrize("wrapped", [False, True])
def test_damaged_rows_in_one_stretch_are_all_counted(tmp_path: Path, wrapped: bool) -> None:
    rows = list(opened(tmp_path / "a.json", damaged_array(60, 40, wrapped)).rows())
    [broken] = [row.value for row in rows if isinstance(row.value, Broken)]
    assert sum(rows_in(row.value) for row in rows) == 100
    assert broken.rows == 40
    assert "about 40" in broken.found


def test_the_guard_counts_the_rows_of_a_stretch(tmp_path: Path) -> None:
    path = tmp_path / "rejects.jsonl"
    path.write_text(Reject("a.json", 5, "damaged", 40).to_line() + Reject("a.json", 70, '"rows": 9').to_line())
    rejects = RejectFile(path)
    assert (len(rejects), rejects.rows) == (2, 41)
    assert [reject.rows for reject in rejects] == [40, 1]
    with pytest.raises(DataError, match="41 of 101"):
        check_rejects(rejects, 60, 0.05)
    check_rejects(rejects, 60, 0.5)


def test_an_array_without_a_good_row_behind_the_damage_is_refused(tmp_path: Path) -> None:
    text = damaged_array(60, 40)
    with pytest.raises(DataError, match="at least 40") as caught:
        values(opened(tmp_path / "a.json", text[: text.rindex('{"instruction": "q 30"')]))
    assert str(caught.value.where) == f"{tmp_path / 'a.json'}:32"


def test_a_damaged_group_of_a_parquet_file_counts_all_its_rows(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([{"a": f"{i}" * 50} for i in range(1000)])
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=500, compression="snappy")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[60:90] = b"\xff" * 30
    assert sum(map(rows_in, values(opened(tmp_path / "a.parquet", bytes(data))))) == 1000


# Excel


def save_book(path: Path, rows: list[list[Any]], *others: str) -> Path:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.title = "first"
    for row in rows:
        sheet.append(row)
    for name in others:
        book.create_sheet(name)
    book.save(path)
    return path


def test_the_first_sheet_of_an_excel_file_is_read_and_noted(tmp_path: Path) -> None:
    rows = [[], ["question", "answer", None], ["问 0", "答 0"], [None, None], ["问 1", 42], ["问 2", 0.5], [True, "答"]]
    rows += [[datetime.datetime(2024, 7, 26), datetime.datetime(2024, 7, 26, 8, 30)]]
    source = opened(save_book(tmp_path / "a.xlsx", rows, "second"))
    found = [(row.line, *row.value.values()) for row in source.rows() if isinstance(row.value, dict)]
    assert found == [(3, "问 0", "答 0"), (5, "问 1", "42"), (6, "问 2", "0.5"), (7, "TRUE", "答"),
                     (8, "2024-07-26", "2024-07-26 08:30:00")]  # fmt: skip
    assert "first sheet: first; sheets that are not read: second" in notes(source)
    assert "numbers and dates" in notes(source)


def test_a_formula_has_its_stored_value_and_without_one_rejects_the_row(tmp_path: Path) -> None:
    rows = [["question", "answer"], ["a", '="b"&"c"'], ["d", "#N/A"], ["e", "f"]]
    first, second, third = values(opened(save_book(tmp_path / "a.xlsx", rows)))
    assert "B2" in first.found
    assert "#N/A" in second.found
    assert third == {"question": "e", "answer": "f"}
    stored = rewritten(tmp_path / "a.xlsx", "xl/worksheets/sheet1.xml", b"<v></v>", b"<v>7</v>", b"<v />", b"<v>7</v>")
    assert values(opened(stored))[0] == {"question": "a", "answer": "7"}


def rewritten(path: Path, member: str, *changes: bytes) -> Path:
    """Return a copy of a zip archive with replacements, given in pairs, in one member."""
    target = path.with_name(f"new-{path.name}")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            data = old.read(name)
            for before, after in zip(changes[::2], changes[1::2], strict=True):
                data = data.replace(before, after) if name == member else data
            new.writestr(name, data)
    return target


@pytest.mark.parametrize("member", ["xl/worksheets/sheet1.xml", "xl/styles.xml", "xl/workbook.xml"])
def test_an_excel_file_with_xml_entities_is_refused(tmp_path: Path, member: str) -> None:
    path = save_book(tmp_path / "a.xlsx", [["question", "answer"], ["a", "b"]])
    with zipfile.ZipFile(path) as book:
        root = book.read(member)
    root = root[root.index(b"?>") + 2 :].lstrip() if root.startswith(b"<?xml") else root
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>' + root
    with pytest.raises(DataError, match="entities"):
        values(opened(rewritten(path, member, root, bomb)))


@pytest.mark.parametrize("content", [b"PK", b"not a zip", b""])
def test_a_file_that_is_no_excel_file_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError) as caught:
        values(opened(tmp_path / "a.xlsx", content))
    assert str(tmp_path / "a.xlsx") in str(caught.value.where)


# Zip


def save_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return path


def test_a_zip_of_data_files_is_read_like_a_folder(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(PAIRS), tmp_path / "c.parquet")
    korean = as_csv([{"question": "도서관은 몇 시에 문을 닫나요?", "answer": "저녁 여덟 시에 닫습니다."}] * 9).encode(
        "cp949"
    )
    members = {"in/b.csv": korean, "a.jsonl": b"1\n2", "c.parquet": (tmp_path / "c.parquet").read_bytes()}
    members |= {"__MACOSX/._a.jsonl": b"x", "README.md": b"x", "../../d.json": b"[3]"}
    source = opened(save_zip(tmp_path / "a.zip", members))
    assert [row.value for row in source.rows()] == [3, 1, 2, *PAIRS, *values(opened(tmp_path / "b.csv", korean))]
    assert source.files == [
        f"{tmp_path / 'a.zip'}/{name}" for name in ("../../d.json", "a.jsonl", "c.parquet", "in/b.csv")
    ]
    assert [row.file for row in source.rows()][-1] == source.files[-1]
    [(file, text)] = source.reading.notes
    assert file == source.files[-1]
    assert "cp949" in text


def test_the_split_of_a_zip_is_chosen_by_name(tmp_path: Path) -> None:
    path = save_zip(tmp_path / "a.zip", {"train.jsonl": b"1", "test.jsonl": b"2"})
    assert [values(opened(path, split=split)) for split in ("train", "test")] == [[1], [2]]


def test_a_broken_file_in_a_zip_is_named_by_its_path_there(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        values(opened(save_zip(tmp_path / "a.zip", {"in/a.json": b"hello"})))
    assert caught.value.where == f"{tmp_path / 'a.zip'}/in/a.json:1"


def test_a_zip_beyond_the_limits_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = save_zip(tmp_path / "a.zip", {"a.jsonl": b" " * (1 << 25)})
    with pytest.raises(DataError, match="200 times"):
        opened(bomb)
    monkeypatch.setattr(archive, "MOST_MEMBERS", 1)
    with pytest.raises(DataError, match="files: 2, at most 1"):
        opened(save_zip(tmp_path / "b.zip", {"a.jsonl": b"1", "b.jsonl": b"2"}))
    with pytest.raises(DataError, match="size unpacked: 32 MiB, at most 1 MiB"):
        archive.open_archive(bomb, 1 << 20)


@pytest.mark.parametrize("members", [{}, {"a.txt": b"x"}, {"a.json": b""}, {"b.zip": b"PK"}])
def test_a_zip_without_a_data_file_is_refused(tmp_path: Path, members: dict[str, bytes]) -> None:
    with pytest.raises(DataError, match="no data file"):
        opened(save_zip(tmp_path / "a.zip", members))


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    path = save_zip(tmp_path / "a.zip", {"a.json": b"[1]"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(DataError, match=r"a\.json is encrypted"):
        opened(path, bytes(data))
