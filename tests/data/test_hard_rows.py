"""Rows and files that were once read wrongly: keys lost in silence, marks as text, calls, damage counted too low."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from lorafit.data.conversation import BadRow
from lorafit.data.formats import ReadRow, recognize_format
from lorafit.data.readers.row import Broken, Renamed, rows_in
from lorafit.data.sources import open_source
from lorafit.errors import DataError

ASK = {"role": "user", "content": "Q"}
ROW = {"question": "Q", "answer": "A"}


def said(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def chat(*turns: dict[str, Any]) -> ReadRow:
    return recognize_format({"messages": [ASK, *turns]})


def unused(read: ReadRow) -> list[str]:
    return [key for key, _long in read.unused]


def called(**call: Any) -> ReadRow:
    return chat(said(None, tool_calls=[{"id": "c", "type": "function", **call}]))


# Keys


def test_of_two_spellings_of_a_key_the_other_one_is_reported() -> None:
    read = recognize_format({"Question": "another question", **ROW})
    assert (read.conversation[0].content, unused(read)) == ("Q", ["Question"])


def test_a_key_that_a_renaming_replaces_is_reported() -> None:
    read = recognize_format({"solution": "B", **ROW}, {"solution": "answer"})
    assert (read.conversation[1].content, unused(read)) == ("B", ["answer"])


def test_a_context_without_a_question_is_reported() -> None:
    read = recognize_format({"text": "plain", "laws": "a text of some length"}, context="laws")
    assert read.unused == (("laws", True),)


def test_keys_that_dataset_info_does_not_name_are_reported_and_may_be_the_context(tmp_path: Path) -> None:
    entry = {"file_name": "d.json", "columns": {"prompt": "instruction", "response": "output"}}
    row = {"instruction": "Q", "input": "never named, so not read", "output": "A", "laws": "L", "images": ["x"]}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"law": entry}), "utf-8")
    (tmp_path / "d.json").write_text(json.dumps([row]), "utf-8")
    (found,) = open_source(f"{tmp_path}/law", "train").rows()
    value = pickle.loads(pickle.dumps(found.value))  # as worker processes get it
    assert isinstance(value, Renamed)
    read = recognize_format(value, context="laws")
    assert read.conversation[0].content == "L\n\nQ"
    assert read.unused == (("input", True), ("images", False))


def test_one_message_is_no_plain_text() -> None:
    """As in files of oasst, where `text` may be a user's message."""
    with pytest.raises(BadRow, match="`role` 'prompter'"):
        recognize_format({"text": "Q", "role": "prompter"})
    assert recognize_format({"text": "T", "role": "judge"}).format == "plain_text"


# Marks


@pytest.mark.parametrize(
    "mark", [{"loss": 0}, {"weight": "0"}, {"train": "False"}, {"trainable": "false"}, {"weight": "0.0"}]
)
def test_a_message_marked_by_a_text_or_a_number_is_not_learned(mark: dict[str, Any]) -> None:
    read = chat(said("BAD", **mark), ASK, said("A"))
    assert [turn.learned for turn in read.conversation if turn.role == "assistant"] == [False, True]
    assert read.unused == ()


def test_marks_in_a_table_are_obeyed_as_in_json(tmp_path: Path) -> None:
    for column, bad, good in (("train", "False", "TRUE"), ("weight", "0", "1"), ("label", "FALSE", "True")):
        (tmp_path / "a.csv").write_text(f"question,answer,{column}\nq,BAD,{bad}\nq,A,{good}\n", "utf-8")
        marked, learned = [row.value for row in open_source(str(tmp_path / "a.csv"), "train").rows()]
        with pytest.raises(BadRow):
            recognize_format(marked)
        assert recognize_format(learned).unused == ()


def test_a_figure_of_the_row_is_no_mark() -> None:
    assert unused(recognize_format({**ROW, "loss": 0.25, "label": "bad"})) == ["loss", "label"]


# Calls


@pytest.mark.parametrize("speaker", ["Function_Call", " function_call", "TOOL_CALL"])
def test_the_speaker_of_a_call_may_be_written_in_any_way(speaker: str) -> None:
    call = {"from": speaker, "value": '{"name": "find", "arguments": {"law": "19"}}'}
    read = recognize_format({"conversations": [{"from": "human", "value": "Q"}, call]})
    assert json.loads(read.conversation[1].calls) == [{"name": "find", "arguments": {"law": "19"}}]
    with pytest.raises(BadRow, match="is empty"):
        recognize_format({"conversations": [{"from": "human", "value": "Q"}, {**call, "value": None}]})


@pytest.mark.parametrize("arguments", ["", " ", None, "null", {}])
def test_a_call_may_have_no_arguments(arguments: object) -> None:
    read = called(function={"name": "find", "arguments": arguments})
    assert json.loads(read.conversation[1].calls) == [{"name": "find", "arguments": {}}]


@pytest.mark.parametrize(
    "call",
    [
        {"function": {"name": "find", "parameters": {"law": "19"}}},
        {"name": "find", "args": {"law": "19"}},
        {"function": {"name": "find"}, "arguments": {"law": "19"}},
    ],
)
def test_arguments_under_another_key_are_refused(call: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match="no arguments, but other keys"):
        called(**call)


def test_further_keys_of_a_call_are_reported() -> None:
    read = called(function={"name": "find", "arguments": "{}", "why": "because the user asks"}, cache=True)
    assert read.unused == (("messages[].tool_calls[].why", True), ("messages[].tool_calls[].cache", False))


def test_tools_that_are_texts_are_refused_with_what_was_found() -> None:
    with pytest.raises(BadRow, match="expected a list of objects, found in it: text"):
        recognize_format({"messages": [ASK, said("A")], "tools": ['{"name": "find"}']})


# Files


def values(path: Path, content: str | bytes) -> list[object]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [row.value for row in open_source(str(path), "train").rows()]


def test_a_list_on_one_line_is_a_list_of_rows(tmp_path: Path) -> None:
    assert values(tmp_path / "a.jsonl", json.dumps([ROW, ROW, ROW])) == [ROW] * 3


def test_rows_without_a_line_break_between_them_are_all_counted(tmp_path: Path) -> None:
    one = json.dumps(ROW)
    first, lost, comma = values(tmp_path / "a.jsonl", f"{one}\n{one}{one} {one}\n{one},\n")
    assert first == ROW
    assert isinstance(lost, Broken)
    assert (rows_in(lost), rows_in(comma)) == (3, 1)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["question,answer\nwhat,that\n", "question,answer\n租约要书面吗,要\n"])
def test_utf16_without_a_mark_is_refused_with_its_name(tmp_path: Path, encoding: str, text: str) -> None:
    with pytest.raises(DataError) as error:
        values(tmp_path / "a.csv", text.encode(encoding))
    assert f"--encoding {encoding}: question,answer" in str(error.value.fix)
    (row,) = open_source(str(tmp_path / "a.csv"), "train", encoding=encoding).rows()
    assert recognize_format(row.value).conversation[0].content in text


def test_utf32_with_a_mark_is_read(tmp_path: Path) -> None:
    assert values(tmp_path / "a.jsonl", json.dumps(ROW).encode("utf-32")) == [ROW]
