"""Row formats: each row becomes a conversation, or an error whose reason names the fault."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.paths import LAWYER_LLAMA

from lorafit.data.conversation import BadRow, Message
from lorafit.data.formats import FORMATS, KEYS, WANTED, recognize_format, to_conversation
from lorafit.data.sources import read_rows

CASES = [json.loads(line) for line in (Path(__file__).parent / "formats.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("case", [case for case in CASES if "conversation" in case], ids=lambda case: case["format"])
def test_a_row_becomes_its_conversation(case: dict[str, Any]) -> None:
    read = recognize_format(case["row"])
    conversation = read.conversation
    assert read.format == case["format"]
    assert conversation == [Message(*turn) for turn in case["conversation"]]
    assert to_conversation(case["row"]) == conversation


@pytest.mark.parametrize("case", [case for case in CASES if "reason" in case], ids=lambda case: case["reason"])
def test_a_bad_row_is_refused_with_what_was_found(case: dict[str, Any]) -> None:
    with pytest.raises(BadRow) as caught:
        to_conversation(case["row"])
    assert case["reason"] in caught.value.reason


def test_every_format_has_a_case_and_says_what_it_wants() -> None:
    assert {case["format"] for case in CASES if "format" in case} == set(FORMATS) == set(WANTED)
    assert all(key in KEYS for text in WANTED.values() for key in re.findall(r"\w+", text))


def test_keys_are_renamed_by_the_map_which_wins_over_keys_of_the_same_name() -> None:
    row = {"题目": "q", "解析": "a", "output": "other"}
    read = recognize_format(row, {"题目": "instruction", "解析": "output"})
    assert (read.format, read.conversation) == ("alpaca", [Message("user", "q"), Message("assistant", "a")])
    with pytest.raises(BadRow, match="keys found: 题目, 解析"):
        recognize_format({"题目": "q", "解析": "a"}, {"题目": "instruction"})


def test_a_context_goes_before_the_first_question() -> None:
    row = {"query": "q", "laws": ["甲", "乙"], "response": "a", "system": "s"}
    system, question, _ = recognize_format(row, context="laws").conversation
    assert (system.content, question.content) == ("s", "甲\n乙\n\nq")
    for laws in ([], None, "", [" "]):
        assert recognize_format({**row, "laws": laws}, context="laws").conversation == to_conversation(row)
    assert recognize_format({**row, "laws": "甲"}, context="laws").conversation[1].content == "甲\n\nq"
    with pytest.raises(BadRow, match="`laws`: expected text, found a whole number"):
        recognize_format({**row, "laws": [1]}, context="laws")


@pytest.mark.skipif(not LAWYER_LLAMA.is_dir(), reason="shared/data/lawyer_llama is absent")
@pytest.mark.parametrize(
    ("name", "format", "rows"),
    [
        ("lawyer_llama_data", "alpaca", 7465),
        ("raw_legal_advice", "alpaca", 500),
        ("raw_legal_counsel_with_article_v2", "query_response", 1000),
        ("raw_legal_counsel_multi_turn_with_article_v2", "tagged_history", 476),
    ],
)
def test_the_published_files_are_recognised_row_by_row(name: str, format: str, rows: int) -> None:
    path = LAWYER_LLAMA / f"{name}.json"
    raw = json.loads(path.read_text("utf-8"))
    counts: Counter[str] = Counter()
    for row, value in zip(read_rows(str(path), "train"), raw, strict=True):
        try:
            read = recognize_format(row.value)
        except BadRow as bad:
            counts[bad.reason] += 1
            continue
        counts[read.format] += 1
        value = value[0] if isinstance(value, list) else value
        text = "".join(turn.content for turn in read.conversation)
        answer = value.get("output") or value.get("response") or value["history"][1].partition("] ")[2]
        assert answer.strip() in text
    assert counts[format] >= 0.99 * rows
    assert sum(counts.values()) == rows
