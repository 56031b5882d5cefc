"""Does every row become the conversation that it holds, or a reason that names what is wrong?"""

import json
from pathlib import Path
from typing import Any

import pytest

from lorafit.data.formats import FORMATS, WANTED, BadRow, Message, recognise, to_conversation

CASES = [json.loads(line) for line in (Path(__file__).parent / "data/formats.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("case", [case for case in CASES if "conversation" in case], ids=lambda case: case["format"])
def test_a_row_becomes_its_conversation(case: dict[str, Any]) -> None:
    name, conversation = recognise(case["row"])
    assert name == case["format"]
    assert conversation == [Message(role, content) for role, content in case["conversation"]]
    assert to_conversation(case["row"]) == conversation


@pytest.mark.parametrize("case", [case for case in CASES if "reason" in case], ids=lambda case: case["reason"])
def test_a_bad_row_is_refused_with_what_was_found(case: dict[str, Any]) -> None:
    with pytest.raises(BadRow) as caught:
        to_conversation(case["row"])
    assert case["reason"] in caught.value.reason


def test_every_format_has_a_case_and_says_what_it_wants() -> None:
    assert {case["format"] for case in CASES if "format" in case} == set(FORMATS) == set(WANTED)
