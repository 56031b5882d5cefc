"""Data that cannot be trained on are refused: the error names the file or flag and a fix."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.refusals import Refused, Words

from lorafit.cli.app import main


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("empty.jsonl", b"", ["empty.jsonl", "0 bytes"]),
        ("blank.jsonl", b"\n\n", ["blank.jsonl", "--dataset_split"]),
        ("none.json", b"[]", ["none.json", "--dataset_split"]),
        ("broken.json", b'[{"instruction": "a"', ["broken.json:1"]),
        ("broken.jsonl", b'{"instruction": \n', ["broken.jsonl:1"]),
        ("table.xls", b"PK", [".xls", ".jsonl", ".xlsx"]),
        ("table.xlsx", b"PK", ["table.xlsx", "CSV"]),
        ("rows.zip", b"PK", ["rows.zip"]),
        ("noend", b"a", ["noend", ".jsonl"]),
        ("row.jsonl", b'{"wonder": "only this"}\n', ["row.jsonl:1", "wonder", "instruction", "output"]),
    ],
)
def test_a_data_file_that_gives_no_row_is_named(
    flags: Callable[..., Words], refused: Refused, tmp_path: Path, name: str, content: bytes, named: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    refused(flags(dataset_name=tmp_path / name), *named)
    assert (tmp_path / name).read_bytes() == content


def test_a_missing_data_file_is_named_with_its_neighbour_before_the_model_is_looked_for(
    flags: Callable[..., Words], refused: Refused, data: Path
) -> None:
    text = refused(flags(dataset_name=data.with_name("laws.jsonl")), "laws.jsonl", data)
    assert "Looking for the model" not in text


def test_rows_without_an_answer_are_counted_and_named(
    flags: Callable[..., Words], refused: Refused, tmp_path: Path
) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{i}", "answer": ""}) + "\n" for i in range(9)))
    refused(flags(dataset_name=path), f"{path}:1", "`answer`", "9")


def test_a_max_length_that_leaves_no_answer_names_the_flag(flags: Callable[..., Words], refused: Refused) -> None:
    refused(flags(max_length=8), "--max_length", "8", "20")


@pytest.mark.parametrize("split", ["train[:abc]", "train[:200%]", "test", "train[100:200]"])
def test_a_slice_that_does_not_exist_is_named(flags: Callable[..., Words], refused: Refused, split: str) -> None:
    refused(flags(dataset_split=split), split, "train")


def test_one_row_is_trained_on_and_the_lack_of_validation_rows_is_reported(
    flags: Callable[..., Words], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags("--dry_run", max_samples=1, lang="en")) == 0
    assert "no validation set" in capsys.readouterr().out


def test_a_val_size_above_the_rows_takes_half_of_them_and_reports_it(
    flags: Callable[..., Words], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags("--dry_run", val_size=100, lang="en")) == 0
    assert "the validation set is limited to half of them, 10." in capsys.readouterr().out
