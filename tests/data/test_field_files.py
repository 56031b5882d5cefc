"""Files as people have them, through `lorafit data --json` in both languages: the right value of each."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.paths import FIELD

from lorafit.cli.app import main

pytestmark = pytest.mark.skipif(not FIELD.is_dir(), reason="shared/field is absent")
END = "<|im_end|>"
# file: good rows, rejected rows, unused keys with the flag that uses them, words in the first text in the loss or reason
EXPECTED: dict[str, tuple[int, int, dict[str, str | None], tuple[str, str]]] = {
    "input_output_type.json": (30, 0, {"type": None}, ("没有约定还款日期的", "没有约定还款日期的")),
    "long_answer_short_question.json": (30, 0, {"laws": "--context_field laws"}, ("可以。0承租人", "可以。0承租人")),
    "reasoning_content.jsonl": (24, 0, {}, ("It is 3.", "It is 3.")),
    "kto_trl.jsonl": (12, 12, {}, ("`label` is false: a bad answer, for preference tuning", "只用于偏好训练")),
    "turn_weight_openai.jsonl": (24, 0, {}, ("Check the cable of screen 0.", "Check the cable of screen 0.")),
    "preference_plain.jsonl": (0, 24, {}, ("a pair for preference tuning", "这是偏好训练的数据")),
    "preference_sharegpt_multi.json": (0, 24, {}, ("a pair for preference tuning", "这是偏好训练的数据")),
    "blank_input.json": (24, 0, {}, ("mot 0", "mot 0")),
    "null_system_turn.json": (24, 0, {}, ("a 0", "a 0")),
    "history_as_text.json": (24, 0, {}, ("a 0", "a 0")),
    "euckr.csv": (24, 0, {}, ("아침 아홉 시에 엽니다.", "아침 아홉 시에 엽니다.")),
    "shift_jis.csv": (24, 0, {}, ("朝の九時に開きます。", "朝の九時に開きます。")),
    "chinese_headers.csv": (24, 0, {}, ("不算无效，可以随时协商补充。", "不算无效，可以随时协商补充。")),
    "excel_sep_line.csv": (24, 0, {}, ("不算无效，可以随时协商补充。", "不算无效，可以随时协商补充。")),
    "excel_empty_columns.csv": (24, 0, {}, ("a 0", "a 0")),
    "conversation_in_csv_cell.csv": (24, 0, {}, ("a0", "a0")),
    "data_wrapped.json": (24, 0, {}, ("a0", "a0")),
    "pretty_printed.jsonl": (20, 0, {}, ("a0", "a0")),
    "old_function_call.jsonl": (0, 24, {}, ("does not write function calls", "不会写出函数调用")),
    "content_and_function_call.jsonl": (0, 24, {}, ("does not write function calls", "不会写出函数调用")),
    "tool_calls_openai.jsonl": (0, 24, {}, ("does not write function calls", "不会写出函数调用")),
    "llava_images.json": (0, 24, {}, ("images, videos and sounds cannot be learned", "不能学习图片、视频和声音")),
    "think_multi_turn.jsonl": (24, 0, {}, ("first thought 0", "first thought 0")),
    "broken_run_in_array.json": (60, 40, {}, ("rows lost", "40")),
}
SAID = {  # a note on how the file was read
    "euckr.csv": "cp949", "shift_jis.csv": "cp932", "data_wrapped.json": "`data`", "pretty_printed.jsonl": "JSON",
    "conversation_in_csv_cell.csv": "`messages`",
}  # fmt: skip


def report_of(name: str, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert main(["data", str(FIELD / name), "--json", *flags]) == 0
    return dict(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("name", EXPECTED)
def test_each_file_has_its_right_value(
    name: str, lang: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAFIT_LANG", lang)
    good, rejected, unused, words = EXPECTED[name]
    report = report_of(name, capsys)
    assert (report["good"], report["rejected"]["rows"]) == (good, rejected)
    assert {key: facts["flag"] for key, facts in report["keys"]["unused"].items()} == unused
    found = report["rejected"]["reasons"][0]["reason"] if rejected else report["samples"][0]["targets"][0]
    assert words[lang == "zh"] in found
    assert SAID.get(name, "") in json.dumps(report["notes"], ensure_ascii=False)
    assert "BADANSWER" not in json.dumps([sample["targets"] for sample in report["samples"]])


def test_a_short_question_stays_whole_beside_a_long_answer(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of("long_answer_short_question.json", capsys, "--max_length", "256")
    assert all("房东不修热水器，我能自己修了从房租里扣吗？" in sample["text"] for sample in report["samples"])
    assert report["truncated"]["rows"] == 30
    assert report["truncated"]["tokens"] - report["truncated"]["targets"] == 30  # a line break at the end of each


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_an_unknown_encoding_is_refused_once_with_the_likeliest_flags(
    lang: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAFIT_LANG", lang)
    assert main(["data", str(FIELD / "cp1252_german.csv"), "--json"]) == 2
    error = capsys.readouterr().err
    assert '--encoding cp1252: "Wie groß ist der Förster?' in error
    assert error.count("--encoding cp125") == 2
    report = report_of("cp1252_german.csv", capsys, "--encoding", "cp1252")
    assert report["rejected"]["rows"] == 0
    assert report["samples"][0]["targets"] == ["Schön groß, für Größe fünf." + END]


@pytest.mark.parametrize(
    "name", ["tool_calls_openai.jsonl", "old_function_call.jsonl", "content_and_function_call.jsonl"]
)
def test_calls_are_learned_under_a_template_that_writes_them(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = tmp_path / "calls.jinja"
    template.write_text(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
        "{% for c in m.tool_calls or [] %}{{ 'CALL ' + c.function | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    report = report_of(name, capsys, "--chat_template", str(template))
    assert report["good"] == 24
    before = "Let me look." if name.startswith("content") else ""
    assert report["samples"][0]["targets"] == [
        before + 'CALL {"name": "get_rent", "arguments": {"city": "town 0"}}' + END, "It is 700." + END,
    ]  # fmt: skip


def test_a_thought_in_a_key_is_learned_where_the_template_writes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = tmp_path / "thoughts.jinja"
    template.write_text(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
        "{{ m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    report = report_of("reasoning_content.jsonl", capsys, "--chat_template", str(template))
    assert report["samples"][0]["targets"] == ["<think>I add 0 and 3; that makes 3.</think>It is 3." + END]
    assert report["left_out_by_template"] == 0
    assert report_of("reasoning_content.jsonl", capsys)["left_out_by_template"] == 24
