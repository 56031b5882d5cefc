"""The data report, compared with counts by a few lines of plain Python: the lawyer-llama files and small data sets."""

import json
import random
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.letters import Letters
from support.paths import LAWYER_LLAMA

from lorafit.config import TrainConfig
from lorafit.data import near_duplicates
from lorafit.data import report as report_module
from lorafit.data.dataset import prepare
from lorafit.data.findings import DataReport, RowLocation
from lorafit.data.readers.row import Broken, Row
from lorafit.data.report import make_report, summary_lines
from lorafit.data.sources import read_rows
from lorafit.data.text_checks import excerpt, lacks_answer, strange_characters, visible
from lorafit.engines.tokenizer import load_tokenizer

CORPUS, ADVICE = LAWYER_LLAMA / "lawyer_llama_data.json", LAWYER_LLAMA / "raw_legal_advice.json"
COUNSEL = LAWYER_LLAMA / "raw_legal_counsel_with_article_v2.json"
TALKS = LAWYER_LLAMA / "raw_legal_counsel_multi_turn_with_article_v2.json"
needs_data = pytest.mark.skipif(not LAWYER_LLAMA.is_dir(), reason="shared/data/lawyer_llama is absent")


def report_of(values: list[Any], **settings: Any) -> DataReport:
    rows = [Row(value, "f.jsonl", line) for line, value in enumerate(values, 1)]
    return make_report(rows, Letters(), TrainConfig(**settings))


def turns_of(row: Any) -> list[str]:
    """Return the texts of a row of the published files: question and answer alternately."""
    row = row[0] if isinstance(row, list) else row
    if "response" in row:
        return [row["query"], row["response"]]
    if "query" in row:
        return merged_turns(row["history"])
    question = "\n".join(part for part in (row["instruction"], row["input"]) if part)
    return [*(text for pair in row.get("history") or [] for text in pair), question, row["output"]]


def merged_turns(history: list[str]) -> list[str]:
    """Return the turns of texts "[客户] …" and "[律师] …", up to the lawyer's last.

    Consecutive texts of one speaker are one turn.
    """
    turns: list[str] = []
    speaker = ""
    for who, _bracket, text in (turn.partition("]") for turn in history):
        text = text.lstrip(" :")  # one row has "[客户] :"
        turns = [*turns[:-1], f"{turns[-1]}\n\n{text}"] if who == speaker else [*turns, text]
        speaker = who
    return turns[: len(turns) // 2 * 2]


def length(turns: Sequence[str]) -> int:
    return sum(len(text) + 2 for text in turns)


def targets(turns: Sequence[str]) -> int:
    return sum(len(text) + 1 for text in turns[1::2])


@needs_data
@pytest.mark.parametrize(
    ("path", "form", "first"),
    [
        pytest.param(CORPUS, "alpaca", 0, marks=pytest.mark.slow),
        (CORPUS, "alpaca", 6500),
        (ADVICE, "alpaca", 0),
        (COUNSEL, "query_response", 0),
        (TALKS, "tagged_history", 0),
    ],
    ids=["corpus", "its last thousand", "advice", "counsel", "talks"],
)
def test_the_figures_of_a_published_file_are_what_plain_python_counts(path: Path, form: str, first: int) -> None:
    talks = [turns_of(row) for row in json.loads(path.read_text("utf-8"))[first:]]
    report = make_report(read_rows(str(path), f"train[{first}:]"), Letters(), TrainConfig(max_length=10_000))
    lengths = sorted(map(length, talks))
    assert report.files == {str(path): (len(talks), len(talks))}
    assert report.formats == {form: len(talks)}
    assert (report.rows, report.rejected, report.without_answer, report.cut_rows) == (len(talks), 0, 0, 0)
    assert (report.total_tokens, report.total_targets) == (sum(lengths), sum(map(targets, talks)))
    assert report.target_share == pytest.approx(sum(map(targets, talks)) / sum(lengths))
    assert report.duplicates.exact == len(talks) - len({tuple(turns) for turns in talks})
    assert report.duplicates.compared == len({tuple(turns) for turns in talks})
    odd = sum(any(unicodedata.category(c) == "Cc" and c not in "\n\t\r" for c in "".join(turns)) for turns in talks)
    assert report.strange_rows >= odd
    assert report.lengths is not None
    assert (report.lengths.shortest, report.lengths.longest) == (lengths[0], lengths[-1])
    assert report.lengths.median == pytest.approx((lengths[(len(talks) - 1) // 2] + lengths[len(talks) // 2]) / 2)
    edges = [*report.lengths.edges, 1 << 60]
    assert report.lengths.rows == [sum(a <= n < b for n in lengths) for a, b in pairwise(edges)]
    assert [sample.tokens for sample in report.samples["shortest"]] == lengths[:3]
    assert [sample.tokens for sample in report.samples["longest"]] == lengths[:-4:-1]


@pytest.mark.slow
@needs_data
def test_a_folder_is_the_sum_of_its_files() -> None:
    files = (CORPUS, ADVICE, TALKS, COUNSEL)
    talks = {str(path): [turns_of(row) for row in json.loads(path.read_text("utf-8"))] for path in files}
    report = make_report(read_rows(str(LAWYER_LLAMA), "train"), Letters(), TrainConfig(max_length=10_000))
    assert report.files == {name: (len(rows), len(rows)) for name, rows in talks.items()}
    every = [tuple(turns) for rows in talks.values() for turns in rows]
    assert report.duplicates.exact == len(every) - len(set(every)) > 0
    assert (report.total_tokens, report.total_targets) == (sum(map(length, every)), sum(map(targets, every)))
    assert (report.train, report.valid, report.leaked_rows) == (len(every) - report.valid, report.valid, 0)
    assert 200 <= report.valid <= 210


@needs_data
def test_what_a_short_max_length_costs_is_what_plain_python_counts() -> None:
    talks = [turns_of(row) for row in json.loads(CORPUS.read_text("utf-8"))[6500:]]
    report = make_report(read_rows(str(CORPUS), "train[6500:]"), Letters(), TrainConfig(max_length=400))
    assert report.good + report.rejected == len(talks)
    assert report.cut_rows + report.rejected == sum(length(turns) > 400 for turns in talks)
    lost = sum(max(length(turns) - 400, 0) for turns in talks)
    assert 0 < report.cut_tokens <= lost
    assert report.rejected or report.cut_tokens == lost
    assert report.total_tokens == sum(min(length(turns), 400) for turns in talks) - 400 * report.rejected


@needs_data
def test_samples_of_the_demo_model_are_whole_texts_with_the_answers_marked(demo_folder: Path) -> None:
    tokenizer = load_tokenizer(demo_folder)
    rows = list(read_rows(str(CORPUS), "train[7300:7360]"))
    report = make_report(rows, tokenizer, TrainConfig(max_length=8192))
    by_line = {row.line: turns_of(row.value) for row in rows}  # type: ignore[arg-type]
    for sample in [sample for group in report.samples.values() for sample in group]:
        turns = by_line[sample.place.line]
        assert [text for text, is_target in sample.pieces if is_target] == [f"{text}<|im_end|>" for text in turns[1::2]]
        assert all(question in text for question, (text, _target) in zip(turns[::2], sample.pieces[::2], strict=False))
    assert len({sample.place for sample in report.samples["random"]}) == 3


def test_rejects_are_grouped_by_reason_whatever_their_numbers_and_named_by_line() -> None:
    turns = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
    broken = [{"messages": turns * n + [{"role": "guest", "content": "x"}]} for n in range(4)]
    report = report_of([{"question": "问", "answer": "答"}, *broken, {"question": "问", "answer": ""}])
    assert [group.rows for group in report.reject_reasons] == [4, 1]
    assert [place for place, _row in report.reject_reasons[0].examples] == [
        RowLocation("f.jsonl", n) for n in (2, 3, 4)
    ]
    assert report.reject_reasons[0].examples[0][1].startswith('{"messages": [{"role": "guest"')
    assert (report.rejected, report.without_answer, report.good) == (5, 2, 1)
    assert report.files == {"f.jsonl": (6, 1)}


def test_a_file_of_bad_rows_only_is_still_reported() -> None:
    report = report_of([{"a": 1}, [], "\ud800", {"question": "问", "answer": " "}])
    assert (report.good, report.rejected, report.lengths) == (0, 4, None)
    assert report.samples == {"shortest": [], "longest": [], "random": []}


@pytest.mark.parametrize(
    ("value", "lacks"),
    [
        ({"instruction": "问", "output": ""}, True),
        ({"instruction": "问", "output": None}, True),
        ({"instruction": "问"}, True),
        ([{"query": "问", "response": " \n"}], True),
        ({"messages": [{"role": "user", "content": "问"}]}, True),
        ({"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}, {}]}, False),
        ({"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]}, False),
        ({"instruction": 5, "output": 7}, False),
        ({"text": "全文"}, False),
        ("问", False),
    ],
)
def test_a_row_without_an_answer_is_told_from_other_bad_ones(value: object, lacks: bool) -> None:
    assert lacks_answer(value) == lacks


def test_exact_copies_stay_on_one_side_and_are_counted() -> None:
    values = [{"question": f"问{i % 20}", "answer": f"答{i % 20}"} for i in range(50)]
    report = report_of(values, val_size=0.2)
    assert (report.duplicates.exact, report.duplicates.compared) == (30, 20)
    assert report.valid >= 10
    assert report.train + report.valid == 50
    assert report.leaked_rows == 0


def test_rows_that_the_cut_makes_equal_are_found_on_both_sides() -> None:
    values = [{"question": "问" * 10, "answer": f"{'答' * 30}{i}"} for i in range(40)]
    assert report_of(values, max_length=100, val_size=4).leaked_rows == 0
    assert report_of(values, max_length=40, val_size=4).leaked_rows == 36


def test_near_duplicates_across_the_split_are_counted() -> None:
    text = "合同到期后房东不退押金，我和他沟通过很多次，他总是找各种理由拖延，请问应该如何维护自己的权益？"
    values = [{"question": f"{i}{text}", "answer": "可以先协商，协商不成的，向当地人民法院起诉。"} for i in range(20)]
    report = report_of(values, val_size=5)
    assert (report.duplicates.near, report.duplicates.near_valid, report.leaked_rows) == (19, 5, 0)


def test_control_and_invisible_characters_are_named_with_their_first_row() -> None:
    answers = ["好\u200b", "\x00\x1b[31m", "行\u200b\t\r\n", "👨‍👩‍👧 普通", "\ufffd"]
    report = report_of([{"question": f"问{i}", "answer": answer} for i, answer in enumerate(answers)])
    found = [(c.code, c.name, c.rows, c.first.line) for c in report.strange]
    assert found[0] == ("U+200B", "zero width space", 2, 1)
    assert set(found[1:]) == {("U+0000", "", 1, 2), ("U+001B", "", 1, 2), ("U+FFFD", "replacement character", 1, 5)}
    assert report.strange_rows == 4
    shown = "".join(text for group in report.samples.values() for sample in group for text, _target in sample.pieces)
    assert set(strange_characters(shown)) <= {"\ufffd"}


def test_shown_text_can_be_printed_anywhere() -> None:
    assert visible("a\x1b[31m\u202eb\ud800\n") == "a⟨U+001B⟩[31m⟨U+202E⟩b?\n"
    assert excerpt({"k": "\ud800" + "字" * 500}).encode("utf-8")
    assert len(excerpt("字" * 500)) < 200


def test_rows_nested_deep_and_rows_of_tables_are_reported() -> None:
    deep: list[Any] = []
    for _ in range(900):
        deep = [deep]
    values = [
        deep,
        {"question": deep, "answer": ""},
        {("a", 1): 2},
        {"question": {1, 2}},
        Broken("a fault", "a row", "{"),
    ]
    report = report_of([*values, {"question": "问", "answer": "答"}])
    assert (report.rejected, report.good) == (5, 1)
    shown = {place.line: text for group in report.reject_reasons for place, text in group.examples}
    assert set(shown) == {1, 2, 3, 4, 5}
    assert shown[5] == "{"


def test_rows_shown_at_random_depend_on_the_seed_alone() -> None:
    values = [{"question": f"问{i}", "answer": f"答{i}"} for i in range(100)]
    lines = [[s.place.line for s in report_of(values, seed=seed).samples["random"]] for seed in (1, 1, 2)]
    assert lines[0] == lines[1] != lines[2]


# near-duplicates


def grams(text: str) -> set[str]:
    text = "".join(text.casefold().split())
    return {
        text[i : i + near_duplicates.NGRAM_CHARACTERS]
        for i in range(max(len(text) - near_duplicates.NGRAM_CHARACTERS + 1, 1))
    }


def jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


def altered(text: str, rng: random.Random) -> str:
    """Return `text` with a few characters replaced, removed or inserted."""
    letters = list(text)
    for _ in range(rng.randrange(1, 2 + len(letters) // 25)):
        letters[rng.randrange(len(letters))] = rng.choice(["", "的", "了", "x"])
    return "".join(letters)


@needs_data
def test_near_duplicates_are_those_that_comparing_every_pair_finds() -> None:
    rng = random.Random(0)
    rows = json.loads(COUNSEL.read_text("utf-8"))[:150]
    texts = [row["query"] + row["response"][: rng.randrange(60, 400)] for row in rows]
    texts += [altered(rng.choice(texts), rng) for _ in range(100)]
    pairs, similar = near_duplicates.near_pairs(np.stack([near_duplicates.signature(text) for text in texts]))
    found = {(int(a), int(b)): float(s) for (a, b), s in zip(pairs, similar, strict=True)}
    every = [grams(text) for text in texts]
    exact = {(a, b): jaccard(every[a], every[b]) for b in range(len(texts)) for a in range(b)}
    assert all(abs(exact[pair] - estimate) < 0.15 for pair, estimate in found.items())
    near = [pair for pair, share in exact.items() if share >= 0.9]
    assert len(near) > 20
    assert set(near) <= set(found)
    assert min(exact[pair] for pair in found) > 0.68


def test_thousands_of_copies_and_huge_texts_cost_no_square() -> None:
    signatures = np.repeat(near_duplicates.signature("合同到期后房东不退押金怎么办？")[None], 5000, axis=0)
    pairs, similar = near_duplicates.near_pairs(signatures)
    assert len(pairs) < 5000 * near_duplicates.MAX_NEIGHBORS
    assert set(pairs[:, 1].tolist()) == set(range(1, 5000))
    assert (similar == 1).all()
    assert near_duplicates.signature("字" * 300_000).shape == (near_duplicates.PLACES,)


@pytest.mark.parametrize("text", ["", " ", "a", "字", "\ud800"])
def test_any_text_has_a_signature(text: str) -> None:
    assert near_duplicates.signature(text).shape == (near_duplicates.PLACES,)


def test_above_the_limit_a_sample_is_compared_that_does_not_depend_on_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "COMPARED", 40)
    values = [{"question": f"第{i}个问题", "answer": f"{i * 7919}"} for i in range(200)]
    values += [{"question": f"第{i}个问题 ", "answer": f"{i * 7919}"} for i in range(200)]  # differ in a space only
    first = report_of(values).duplicates
    random.Random(1).shuffle(values)
    second = report_of(values).duplicates
    assert first.compared == second.compared == 40
    assert first.near == second.near > 0


# the summary at the start of training


def test_the_summary_has_rows_formats_copies_rejects_cuts_and_targets() -> None:
    values: list[Any] = [{"question": f"问{i}", "answer": f"答{i % 9}"} for i in range(39)]
    values += [values[0], {"instruction": "长", "input": "", "output": "答" * 100}, {"answer": "x"}]
    rows = [Row(value, "f.jsonl", line) for line, value in enumerate(values, 1)]
    prepared = prepare(rows, Letters(), TrainConfig(max_length=64))
    first, second = summary_lines(prepared)
    assert first == "✓ data: 42 rows (question_answer 40, alpaca 1); exact duplicates: 1, rejected: 1"
    share = prepared.total_targets / prepared.total_tokens
    assert second == f"✓ tokens: {prepared.total_tokens}, {share:.0%} of them in the loss; truncated rows: 1"
