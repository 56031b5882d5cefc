"""Rows in the shapes of public bug reports, through `lorafit data --json` in both languages.

Each case gives the text in the loss of every row, or the reason of the refusal in both languages.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lorafit.cli.app import main
from lorafit.data.conversation import BadRow
from lorafit.data.formats import recognize_format
from lorafit.data.truncate import question_excess

END = "<|im_end|>"


def chat(*turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(turns), **more}


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ASK, ANSWER = said("user", "租约要书面吗？"), said("assistant", "半年以上要。")
CALL = {"name": "find", "arguments": '{"law": "707"}'}


@dataclass(frozen=True)
class Case:
    """Rows, and what becomes of them: `targets` of the good rows, or words of the `reason` in English and Chinese."""

    rows: list[dict[str, Any]]
    targets: list[list[str]] = field(default_factory=list)
    unused: dict[str, str | None] = field(default_factory=dict)  # key -> flag
    reason: tuple[str, str] | None = None
    template_omits: int = 0
    flags: tuple[str, ...] = ()


TEXT_ONLY = ("images, videos and sounds cannot be learned", "图片、视频和声音")
CASES = {
    "thought in a key": Case([chat(ASK, said("assistant", "半年以上要。", reasoning_content="查 707 条"))],
                             [["半年以上要。"]], template_omits=1),
    "thought in a key and in the content": Case(
        [chat(ASK, said("assistant", "<think>\n查\n</think>\n\n要", thinking="另查"))],
        reason=("two different texts of reasoning", "两段不同的思考"),
    ),
    "weight 0 and 1": Case(
        [chat(ASK, said("assistant", "BAD", weight=0), said("user", "？"), said("assistant", "要", weight=1))], [["要"]]
    ),
    "loss false": Case([chat(ASK, said("assistant", "BAD", loss=False), said("user", "？"), ANSWER)], [["半年以上要。"]]),
    "train false on all": Case([chat(ASK, said("assistant", "BAD", train=False))],
                               reason=("no assistant message of `messages` is to be learned", "没有要学习的助手消息")),
    "a weight between": Case([chat(ASK, said("assistant", "要", weight=0.5))], reason=("is 0.5, expected 0", "为 0.5，应为 0")),
    "a user's message to be learned": Case([chat(said("user", "？", train=True), ANSWER)],
                                           reason=("only an assistant's messages can be", "只能学习助手的消息")),
    "a row not to be learned": Case([{"prompt": "问", "completion": "答", "loss": False}],
                                    reason=("marked as not to be learned: loss", "标记为不学习：loss")),
    "kto": Case([{"prompt": "问", "completion": "BAD", "label": False}], reason=("`label` is false", "`label` 为 false")),
    "kto, good": Case([{"prompt": "问", "completion": "答", "label": True}], [["答"]]),
    "label of another kind": Case([{"question": "问", "answer": "答", "label": 0}], [["答"]], {"label": None}),
    "preference": Case([{"prompt": "问", "chosen": "CHOSEN", "rejected": "BAD"}],
                       reason=("--field_map chosen=completion", "--field_map chosen=completion")),
    "preference, chosen only": Case([{"prompt": "问", "chosen": "好答", "rejected": "坏答"}], [["好答"]], {"rejected": None},
                                    flags=("--field_map", "chosen=completion")),
    "preference beside a conversation": Case(
        [{"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}, {"from": "human", "value": "问"}],
          "chosen": {"from": "gpt", "value": "CHOSEN"}, "rejected": {"from": "gpt", "value": "BAD"}}],
        reason=("put each at the end of its conversation", "放到各自对话的末尾"),
    ),
    "image": Case([{"image": "0.png", "conversations": [{"from": "human", "value": "<image>\n这是？"},
                                                        {"from": "gpt", "value": "猫"}]}], reason=TEXT_ONLY),
    "image in a part": Case([chat(said("user", [{"type": "text", "text": "？"}, {"type": "image_url", "image_url": "x"}]), ANSWER)],
                            reason=TEXT_ONLY),
    "input and output": Case([{"input": "问", "output": "答", "type": "civil"}], [["答"]], {"type": None}),
    "Chinese names": Case([{"问题": "问", "答案": "答"}, {"提问": "问二", "回答": "答二"}, {"指令": "问三", "输入": "四", "输出": "答三"}],
                          [["答"], ["答二"], ["答三"]]),
    "capital letters": Case([{"Question": "问", "Answer": "答"}, {"Instruction": "问", "Input": " ", "Output": "答二"}],
                            [["答"], ["答二"]]),
    "other pairs": Case(
        [{"prompt": "a", "response": "A"}, {"Context": "b", "Response": "B"}, {"q": "c", "a": "C"}, {"ask": "d", "answer": "D"},
         {"human": "e", "assistant": "E"}, {"src": "f", "tgt": "F"}, {"inputs": "g", "targets": "G"},
         {"instruction": "h", "context": "", "response": "H"}, {"problem": "i", "solution": "I"}],
        [[letter] for letter in "ABCDEFGHI"],
    ),
    "two readings": Case(
        [{"ask": "问", "reply": "答", "回答": "另一答"}],
        reason=("--field_map ask=question,reply=answer, --field_map ask=question,回答=answer",
                "--field_map ask=question,reply=answer、--field_map ask=question,回答=answer"),
    ),
    "blank optional values": Case(
        [{"instruction": "问", "input": blank, "output": "答", "system": blank, "history": blank} for blank in ("", " ", None, "[]")],
        [["答"]] * 4,
    ),
    "not a number": Case([{"instruction": "问", "input": float("nan"), "output": "答", "system": float("nan")}], [["答"]]),
    "system turn without text": Case([chat(said("system", None), ASK, ANSWER), chat(said("system", ""), ASK, ANSWER)],
                                     [["半年以上要。"]] * 2),
    "laws": Case([{"query": "问", "laws": ["民法典第七百零七条：租赁期限六个月以上的，应当采用书面形式。"], "response": "答"}], [["答"]],
                 {"laws": "--context_field laws"}),
    "laws, used": Case([{"query": "问", "laws": ["法" * 30], "response": "答"}], [["答"]], flags=("--context_field", "laws")),
    "keys inside messages": Case([chat(said("user", "问", id=7), ANSWER, topic="x")], [["半年以上要。"]],
                                 {"messages[].id": None, "topic": None}),
    "conversation in a cell": Case([{"messages": json.dumps([ASK, ANSWER])}], [["半年以上要。"]]),
    "calls that the template leaves out": Case(
        [chat(ASK, said("assistant", None, function_call=CALL), said("function", "第 707 条", name="find"), ANSWER)],
        reason=("does not write function calls, such as `messages[2]`", "不会写出函数调用，例如 `messages[2]`"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("name", CASES)
def test_each_row_is_learned_rightly_or_refused_in_words(
    name: str, lang: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, file = CASES[name], tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in case.rows), "utf-8")
    monkeypatch.setenv("LORAFIT_LANG", lang)
    assert main(["data", str(file), "--json", *case.flags]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [sample["targets"] for sample in report["samples"]] == [
        [text + END for text in turn] for turn in case.targets
    ]
    assert {key: facts["flag"] for key, facts in report["keys"]["unused"].items()} == case.unused
    assert report["left_out_by_template"] == case.template_omits
    reasons = [group["reason"] for group in report["rejected"]["reasons"]]
    if case.reason:
        assert len(reasons) == 1
        assert case.reason[lang == "zh"] in reasons[0]
    else:
        assert reasons == []


def test_the_start_of_a_run_names_unused_keys_and_undocumented_names(tmp_path: Path) -> None:
    from support.letters import Letters

    from lorafit.config import TrainConfig
    from lorafit.data.dataset import prepare
    from lorafit.data.readers.row import Row

    rows = [Row({"问题": f"问{i}", "答案": f"答{i}", "type": "x", "laws": "法" * 30}, "f", i) for i in range(20)]
    notes = prepare(rows, Letters(), TrainConfig()).notes
    assert "Rows read with `问题` as the question and `答案` as the answer: 20." in notes
    assert "Keys that are not used (rows): `type` (20), `laws` (20)." in notes
    assert "To put one of these texts before the question: --context_field laws." in notes


def test_results_of_functions_get_their_names() -> None:
    """By their own name, by the call's ID, or in the order of the calls."""
    two = [{"id": "c1", "function": {"name": "find"}}, {"id": "c2", "function": {"name": "count"}}]
    turns = [ASK, said("assistant", "", tool_calls=two)]
    for results, names in (
        ([said("tool", "1"), said("tool", "2")], ["find", "count"]),
        ([said("tool", "1", tool_call_id="c2"), said("tool", "2", tool_call_id="c1")], ["count", "find"]),
        ([said("tool", "1", name="own"), said("tool", "")], ["own", "count"]),
    ):
        read = recognize_format(chat(*turns, *results, ANSWER))
        assert [turn.name for turn in read.conversation if turn.role == "tool"] == names
        assert read.unused == ()


def test_the_functions_of_openais_older_form_are_described() -> None:
    row = chat(ASK, said("assistant", "", function_call=CALL), functions=[{"name": "find", "parameters": {}}])
    tools, _ask, call = recognize_format(row).conversation
    assert json.loads(tools.content) == [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    assert json.loads(call.calls) == [{"name": "find", "arguments": {"law": "707"}}]


@pytest.mark.parametrize("content", [None, float("nan"), ""])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_message_without_content_is_refused(role: str, content: object) -> None:
    with pytest.raises(BadRow, match=r"`messages\[2\].content`|no assistant message"):
        recognize_format(chat(ASK, said(role, content), ASK, ANSWER))


@pytest.mark.parametrize("row", [{"messages": "not a list"}, {"messages": "[1"}, {"prompt": ["q"], "completion": "a"}])
def test_lists_that_are_none_are_refused(row: dict[str, Any]) -> None:
    with pytest.raises(BadRow):
        recognize_format(row)


@pytest.mark.parametrize(
    ("questions", "answers", "removed"),
    [
        (30, 1000, 0),  # the question stays whole: it needs at most half of the room of 80
        (40, 41, 0),
        (1000, 40, 960),  # the answer stays whole
        (1000, 30, 950),
        (100, 100, 60),  # both are long: each keeps the same share, 80 of 200
        (300, 100, 240),
        (0, 500, 0),
    ],
)
def test_the_side_that_needs_less_than_half_of_the_room_stays_whole(questions: int, answers: int, removed: int) -> None:
    template = 20
    assert question_excess(questions, answers, questions + answers + template, 100) == removed
