"""Preparation of a data set: samples, split into training and validation rows, rejected and truncated rows, notes."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from support import paths
from support.rows import questions, rows_of

from lorafit.config import TrainConfig
from lorafit.data.dataset import PreparedData, Reject, content_key, prepare, write_rejects
from lorafit.data.formats import recognize_format
from lorafit.data.render import render
from lorafit.data.sources import read_rows
from lorafit.engines.tokenizer import ChatTokenizer, load_tokenizer
from lorafit.errors import DataError

LAWYER_LLAMA = paths.LAWYER_LLAMA / "lawyer_llama_data.json"


@pytest.fixture(scope="module")
def tokenizer(demo_folder: Path) -> ChatTokenizer:
    return load_tokenizer(demo_folder)


def texts_of(data: PreparedData, tokenizer: ChatTokenizer) -> tuple[set[str], set[str]]:
    """Return the decoded samples of the training set and of the validation set."""
    train, valid = ({tokenizer.decode(s.input_ids.tolist()) for s in store} for store in (data.train, data.valid))
    return train, valid


@pytest.mark.skipif(not LAWYER_LLAMA.is_file(), reason="shared/data/lawyer_llama is absent")
def test_real_rows_become_the_samples_that_render_gives_one_by_one(tokenizer: ChatTokenizer) -> None:
    config = TrainConfig(max_length=1024)
    rows = list(read_rows(str(LAWYER_LLAMA), "train[7000:7300]"))
    data = prepare(rows, tokenizer, config)
    assert data.formats == {"alpaca": data.rows}
    assert data.rows + len(data.rejects) == 300
    assert (len(data.valid), len(data.valid_conversations)) == (15, 15)
    held_out = {content_key(conversation) for conversation in data.valid_conversations}
    train, valid = iter(data.train), iter(data.valid)
    rejected = {reject.line for reject in data.rejects}
    for row in rows:
        if row.line in rejected:
            continue
        conversation = recognize_format(row.value).conversation
        sample = next(valid if content_key(conversation) in held_out else train)
        expected = render(conversation, tokenizer, 1024, config.date_string).sample
        assert np.array_equal(sample.input_ids, expected.input_ids)
        assert np.array_equal(sample.target_mask, expected.target_mask)
    assert data.total_tokens == sum(data.train.lengths) + sum(data.valid.lengths)
    assert data.total_targets == sum(s.num_targets for store in (data.train, data.valid) for s in store)


def test_equal_conversations_stay_on_one_side_and_order_does_not_matter(tokenizer: ChatTokenizer) -> None:
    values = questions(20) * 3
    first = prepare(rows_of(values), tokenizer, TrainConfig(val_size=7))
    random.Random(1).shuffle(values)
    second = prepare(rows_of(values), tokenizer, TrainConfig(val_size=7))
    assert texts_of(first, tokenizer) == texts_of(second, tokenizer)
    train, valid = texts_of(first, tokenizer)
    assert not train & valid
    assert (len(first.valid), len(first.train), len(first.valid_conversations)) == (9, 51, 3)


def test_rows_that_equal_a_held_out_row_once_cut_are_not_trained_on(tokenizer: ChatTokenizer) -> None:
    long = [{"question": "问", "answer": "甲" * 200 + str(i)} for i in range(20)]
    data = prepare(rows_of(long + questions(5)), tokenizer, TrainConfig(val_size=6, max_length=64))
    train, valid = texts_of(data, tokenizer)
    assert any("甲" in text for text in valid)
    assert not any("甲" in text for text in train)
    assert any("Rows with the same tokens as a validation row" in note for note in data.notes)
    with pytest.raises(DataError) as error:
        prepare(rows_of(long), tokenizer, TrainConfig(val_size=6, max_length=64))
    assert "--max_length" in str(error.value.fix)


def test_what_is_held_out_stays_held_out_when_rows_are_added(tokenizer: ChatTokenizer) -> None:
    fewer, more = (prepare(rows_of(questions(n)), tokenizer, TrainConfig(val_size=0.1)) for n in (100, 120))
    smallest = sorted(map(content_key, more.valid_conversations))
    assert smallest == [content_key(c) for c in more.valid_conversations]
    assert set(smallest[:5]) - {content_key(c) for c in fewer.valid_conversations} <= {
        content_key(recognize_format(q).conversation) for q in questions(120)[100:]
    }


@pytest.mark.parametrize(
    ("rows", "val_size", "held_out"),
    [(10, 0.05, 1), (100, 0.05, 5), (10, 0, 0), (10, 3, 3), (2, 1, 1), (1, 0.05, 0), (10, 20, 5)],
)
def test_the_validation_set_has_the_size_asked_for(
    tokenizer: ChatTokenizer, rows: int, val_size: float, held_out: int
) -> None:
    data = prepare(rows_of(questions(rows)), tokenizer, TrainConfig(val_size=val_size))
    assert (len(data.valid), len(data.train)) == (held_out, rows - held_out)
    assert bool(data.notes) == (rows == 1 or val_size == 20)


def test_a_share_holds_out_200_rows_at_most(tokenizer: ChatTokenizer) -> None:
    data = prepare(rows_of(questions(1000)), tokenizer, TrainConfig(val_size=0.5))
    assert (len(data.valid), len(data.valid_conversations)) == (200, 200)


def test_max_samples_takes_the_first_good_rows(tokenizer: ChatTokenizer) -> None:
    values = [*questions(30)[:10], {"question": "x"}, *questions(30)[10:]]
    data = prepare(rows_of(values), tokenizer, TrainConfig(max_samples=20, val_size=0))
    assert len(data.train) == 20
    assert [reject.line for reject in data.rejects] == [11]


def test_different_data_have_different_digests(tokenizer: ChatTokenizer) -> None:
    def digest(values: list[object], **settings: object) -> str:
        return prepare(rows_of(values), tokenizer, TrainConfig(**settings)).digest  # type: ignore[arg-type]

    same = digest(questions(20))
    assert digest(questions(20)) == same
    assert len({same, digest(questions(21)), digest(questions(20), val_size=2), digest(questions(20)[::-1])}) == 4


def test_bad_rows_are_named_and_too_many_stop(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    good = questions(95)
    data = prepare(rows_of([{"q": 1}] * 5 + good), tokenizer, TrainConfig())
    write_rejects(tmp_path / "rejects.jsonl", data.rejects)
    written = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text("utf-8").splitlines()]
    assert [Reject(**reject) for reject in written] == list(data.rejects)
    assert written[4]["line"] == 5
    with pytest.raises(DataError) as caught:
        prepare(rows_of([{"q": 1}] * 6 + good), tokenizer, TrainConfig())
    assert "6 of 101" in caught.value.what
    assert str(caught.value.found).count("f.jsonl:") == 3
    with pytest.raises(DataError, match=r"rejected rows: 1 of 1\."):
        prepare(rows_of([{"q": 1}]), tokenizer, TrainConfig())


def test_cut_rows_are_counted_and_rows_without_an_answer_left_rejected(tokenizer: ChatTokenizer) -> None:
    long = {"question": "问", "answer": "答" * 100}
    hopeless = {"question": "问" * 100, "answer": "答"}
    data = prepare(rows_of([long, hopeless, *questions(30)]), tokenizer, TrainConfig(max_length=50, val_size=0))
    assert data.truncated_rows == 1
    assert (data.train.lengths.max(), data.train.lengths[0]) == (50, 50)
    assert "max_length 50" in data.rejects[0].reason
    assert f"Tokens removed: {data.truncated_tokens}," in data.notes[0]
    assert all(sample.num_targets for sample in data.train)


def test_rows_of_any_shape_are_prepared_or_named(tokenizer: ChatTokenizer) -> None:
    rng = random.Random(0)
    leaves = [None, 1, "", " ", "x", "\0", "\ud800", "<|im_end|>", "甲" * 50, True, 1.5, [], {}, [["a", "b"]], [["a"]]]
    keys = ["instruction", "input", "output", "system", "history", "question", "answer", "messages", "role", "content"]

    def shape(depth: int) -> object:
        kind = rng.random()
        if depth == 0 or kind < 0.4:
            return rng.choice(leaves)
        if kind < 0.6:
            return [shape(depth - 1) for _ in range(rng.randrange(4))]
        return {key: shape(depth - 1) for key in rng.sample(keys, rng.randrange(1, 6))}

    roles = ["user", "assistant", "system"]
    rows = [{"messages": [{"role": rng.choice(roles), "content": "x"} for _ in range(4)]} for _ in range(50)]
    rows += [{key: rng.choice(leaves) for key in ("instruction", "input", "output", "history")} for _ in range(50)]
    good, refusals = 0, []
    for value in [shape(3) for _ in range(200)] + rows:
        try:
            good += prepare(rows_of([value]), tokenizer, TrainConfig()).rows
        except DataError as error:
            refusals.append(str(error.found))
    assert good > 10
    assert good + len(refusals) == 300
    assert all(refusal.startswith("f.jsonl:1: ") for refusal in refusals)


def test_the_note_on_cut_rows_says_what_it_would_cost_to_cut_nothing(tokenizer: ChatTokenizer) -> None:
    values = [{"question": f"问{i}", "answer": "答" * (10 * i + 10)} for i in range(20)]
    whole = prepare(rows_of(values), tokenizer, TrainConfig(max_length=4096, val_size=0))
    data = prepare(rows_of(values), tokenizer, TrainConfig(max_length=128, val_size=0))
    assert not whole.notes
    longest = int(whole.train.lengths.max())
    more = whole.total_tokens / data.total_tokens - 1
    assert f"--max_length {longest} removes none, for {more:.0%} more tokens" in data.notes[0]
    assert data.truncated_tokens == whole.total_tokens - data.total_tokens
    enough = prepare(rows_of(values), tokenizer, TrainConfig(max_length=longest, val_size=0))
    assert enough.digest == whole.digest


def test_more_rejects_are_let_through_when_asked_for(tokenizer: ChatTokenizer) -> None:
    values: list[object] = [{"q": 1}] * 30 + questions(70)
    with pytest.raises(DataError, match=r"rejected rows: 30 of 100\.") as caught:
        prepare(rows_of(values), tokenizer, TrainConfig())
    assert "--max_rejects 0.31" in str(caught.value.fix)
    assert prepare(rows_of(values), tokenizer, TrainConfig(max_rejects=0.31)).rows == 70
    with pytest.raises(DataError, match=r"rejected rows: 1 of 101\."):
        prepare(rows_of([{"q": 1}, *questions(100)]), tokenizer, TrainConfig(max_rejects=0))


def test_a_validation_set_of_its_own_shares_no_row_with_the_training_rows(tokenizer: ChatTokenizer) -> None:
    data = prepare(rows_of(questions(30)), tokenizer, TrainConfig(), rows_of(questions(40)[25:]))
    train, valid = texts_of(data, tokenizer)
    assert (len(data.train), len(data.valid), len(train & valid)) == (25, 15, 0)
    assert len(data.valid_conversations) == 15
    assert data.notes[0] == "Training rows that are also in the validation data, not used for training: 5."
    with pytest.raises(DataError, match="All training rows"):
        prepare(rows_of(questions(5)), tokenizer, TrainConfig(), rows_of(questions(6)))
