"""Names in LLaMA-Factory's dataset_info.json: files, columns and tags are obeyed, and nothing is fetched."""

import json
from pathlib import Path
from typing import Any

import pytest

from lorafit.data.formats import recognize_format
from lorafit.data.readers.row import Broken
from lorafit.data.sources import LocalData, check_source, local_files, open_source
from lorafit.errors import DataError

PLAIN = {"instruction": "q", "input": "", "output": "a"}
MEMO = {"frage": "q", "mehr": "m", "antwort": "a", "regel": "s", "vorher": [["x", "y"]], "output": "other"}
TALK = {
    "turns": [{"who": "boss", "said": "s"}, {"who": "me", "said": "q"}, {"who": "it", "said": "a"}],
    "conversations": 1,
}
CHAT = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
TAGS = {"role_tag": "who", "content_tag": "said", "user_tag": "me", "assistant_tag": "it", "system_tag": "boss"}
COLUMNS = {"prompt": "frage", "query": "mehr", "response": "antwort", "system": "regel", "history": "vorher"}
OPENAI = {"messages": [{"role": "user", "content": "q", "weight": 0}, {"role": "assistant", "content": "a"}]}
OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


def folder_with(path: Path, entry: dict[str, Any], *rows: object, name: str = "law.jsonl") -> Path:
    """Write a folder with the entries `mine` and `other`, and a data file."""
    path.mkdir(exist_ok=True)
    entries = {"mine": entry, "other": {"hf_hub_url": "owner/name"}}
    (path / "dataset_info.json").write_text(json.dumps(entries))
    (path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def values(name: str | Path) -> list[Any]:
    return [row.value for row in open_source(str(name), "train").rows()]


@pytest.mark.parametrize(
    ("entry", "row", "form", "turns"),
    [
        ({}, PLAIN, "alpaca", ["q", "a"]),
        ({"columns": COLUMNS}, MEMO, "alpaca", ["s", "x", "y", "q\nm", "a"]),
        ({"columns": {"prompt": "frage", "response": "antwort"}}, MEMO, "alpaca", ["q", "a"]),
        ({"columns": {"prompt": "frage"}}, MEMO, "plain_text", ["q"]),
        ({"formatting": "sharegpt"}, CHAT, "messages", ["q", "a"]),
        ({"formatting": "sharegpt", "columns": {"messages": "turns"}, "tags": TAGS}, TALK, "messages", ["s", "q", "a"]),
        ({"formatting": "openai", "columns": {"messages": "messages"}, "tags": OPENAI_TAGS}, OPENAI, "messages", ["q", "a"]),
    ],
)  # fmt: skip
def test_columns_and_tags_are_obeyed(
    tmp_path: Path, entry: dict[str, Any], row: dict[str, Any], form: str, turns: list[str]
) -> None:
    folder = folder_with(tmp_path / "data", {"file_name": "law.jsonl", **entry}, row)
    [value] = values(folder / "mine")
    read = recognize_format(value)
    found, conversation = read.format, read.conversation
    assert (found, [turn.content for turn in conversation]) == (form, turns)
    [row_read] = open_source(str(folder / "mine"), "train").rows()
    assert (row_read.file, row_read.line) == (str(folder / "law.jsonl"), 1)


def test_other_keys_of_a_message_are_kept(tmp_path: Path) -> None:
    entry = {"file_name": "law.jsonl", "formatting": "openai", "columns": {"messages": "messages"}, "tags": OPENAI_TAGS}
    [value] = values(folder_with(tmp_path / "data", entry, OPENAI) / "mine")
    assert value["messages"][0]["weight"] == 0


def test_a_row_without_a_named_column_is_broken(tmp_path: Path) -> None:
    [value] = values(folder_with(tmp_path / "data", {"file_name": "law.jsonl", "columns": COLUMNS}, PLAIN) / "mine")
    assert isinstance(value, Broken)
    assert "frage, antwort" in value.wanted


def test_num_samples_takes_the_first_rows_and_names_are_combined(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "data", {"file_name": "law.jsonl", "num_samples": 2}, PLAIN, PLAIN, PLAIN)
    assert len(values(folder / "mine")) == 2
    assert len(values(f"{folder / 'mine'},{folder / 'law.jsonl'}")) == 5


def test_a_name_relative_to_the_working_folder_is_no_dataset_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_with(tmp_path / "data", {"file_name": "law.jsonl"}, PLAIN)
    monkeypatch.chdir(tmp_path)
    check_source("data/mine", "train")
    assert values("data/mine") == [{"instruction": "q", "input": "", "output": "a"}]
    with pytest.raises(DataError, match="data/mine") as caught:
        check_source("data/mien", "train")
    assert "No such data set" in caught.value.what


def test_a_folder_with_one_entry_is_that_entry_and_with_more_needs_a_name(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "data", {"file_name": "law.jsonl"}, PLAIN)
    with pytest.raises(DataError, match="data/mine") as caught:
        values(folder)
    assert "data/other" in str(caught.value.fix)
    (folder / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "law.jsonl", "columns": COLUMNS}}))
    assert isinstance(values(folder)[0], Broken)


def test_the_file_of_this_name_that_datasets_writes_is_no_data(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "data", {}, PLAIN)
    (folder / "dataset_info.json").write_text('{"builder_name": "json", "features": {"a": {"dtype": "string"}}}')
    assert values(folder) == [PLAIN]


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"hf_hub_url": "owner/name"}, "--dataset_name owner/name"),
        ({"ms_hub_url": "owner/name"}, "--dataset_name owner/name --hub modelscope"),
        ({"script_url": "law"}, "file_name"),
        ({"file_name": "../law.jsonl"}, "outside"),
        ({"file_name": "/etc/law.jsonl"}, "outside"),
        ({"file_name": "in\\..\\..\\law.jsonl"}, "outside"),
        ({"file_name": "C:\\law.jsonl"}, "outside"),
        ({"file_name": "missing.jsonl"}, "not found"),
        ({"file_name": 3}, "names no file"),
        ({"formatting": "sharegpt"}, "names no file"),
        ({"file_name": "law.jsonl", "formatting": "chatml"}, "sharegpt"),
        ({"file_name": "law.jsonl", "ranking": True}, "Preference"),
        ({"file_name": "law.jsonl", "columns": {"kto_tag": "label"}}, "kto_tag"),
        ({"file_name": "law.jsonl", "columns": {"prompt": "p", "images": "images"}}, "images"),
        ({"file_name": "law.jsonl", "columns": {"response": "p"}}, "prompt"),
        ({"file_name": "law.jsonl", "columns": {"prompt": "p", "response": "r", "tools": "t"}}, "tools"),
        ({"file_name": "law.jsonl", "columns": ["p"]}, "columns"),
        ({"file_name": "law.jsonl", "num_samples": 0}, "num_samples"),
        ({"file_name": "law.jsonl", "split": "test"}, "test"),
    ],
)
def test_what_is_not_read_is_refused_in_words(tmp_path: Path, entry: dict[str, Any], named: str) -> None:
    folder = folder_with(tmp_path / "data", entry, PLAIN)
    (tmp_path / "law.jsonl").write_text(json.dumps(PLAIN))
    with pytest.raises(DataError) as caught:
        values(folder / "mine")
    assert named in str(caught.value)
    assert caught.value.fix
    assert str(folder) in str(caught.value.where)


def test_a_list_of_data_sets_that_is_no_json_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "data", {}, PLAIN)
    (folder / "dataset_info.json").write_text('{"mine": ')
    with pytest.raises(DataError, match="not valid JSON"):
        values(folder / "mine")


def test_the_files_of_an_entry_are_named_with_the_list(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "data", {"file_name": "law.jsonl"}, PLAIN)
    name = str(folder / "mine")
    files = [folder / "dataset_info.json", folder / "law.jsonl"]
    assert list(local_files(name, "train")) == [LocalData(name, files, folder, "mine")]


def test_columns_and_samples_are_part_of_what_identifies_the_data(tmp_path: Path) -> None:
    def content(**entry: object) -> list[str]:
        folder = folder_with(tmp_path / "data", {"file_name": "law.jsonl", **entry}, PLAIN)
        return open_source(str(folder / "mine"), "train").content(lambda path: path.name)

    assert content() == content()
    assert content() != content(columns=COLUMNS) != content(num_samples=1) != content()
