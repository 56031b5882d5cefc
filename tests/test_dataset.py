"""Is every row either learned from, held out, or named with a reason, and is the split the same whatever the order?"""

import json
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lorafit.config import TrainConfig
from lorafit.data import build
from lorafit.data.dataset import Prepared, Reject, cached, content_key, drain, prepare, prepare_cached, write_rejects
from lorafit.data.formats import recognise
from lorafit.data.readers import Row
from lorafit.data.recipe import recipe_of
from lorafit.data.render import Tokenizer, render
from lorafit.data.sources import read_rows
from lorafit.data.store import digest as store_digest
from lorafit.engines.tokenizer import ChatTokenizer, load_tokenizer, shared_tokenizer
from lorafit.errors import DataError

LAWYER_LLAMA = Path(__file__).parents[2] / "shared/data/lawyer_llama/lawyer_llama_data.json"


@pytest.fixture(scope="module")
def tokenizer(demo_folder: Path) -> ChatTokenizer:
    return load_tokenizer(demo_folder)


def rows_of(values: list[object]) -> list[Row]:
    return [Row(value, "f.jsonl", line) for line, value in enumerate(values, 1)]


def questions(count: int) -> list[object]:
    return [{"question": f"问 {i}", "answer": f"答 {i}"} for i in range(count)]


def said(data: Prepared, tokenizer: ChatTokenizer) -> tuple[set[str], set[str]]:
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
        conversation = recognise(row.value)[1]
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
    assert said(first, tokenizer) == said(second, tokenizer)
    train, valid = said(first, tokenizer)
    assert not train & valid
    assert (len(first.valid), len(first.train), len(first.valid_conversations)) == (9, 51, 3)


def test_rows_that_equal_a_held_out_row_once_cut_are_not_trained_on(tokenizer: ChatTokenizer) -> None:
    long = [{"question": "问", "answer": "甲" * 200 + str(i)} for i in range(20)]
    data = prepare(rows_of(long + questions(5)), tokenizer, TrainConfig(val_size=6, max_length=64))
    train, valid = said(data, tokenizer)
    assert any("甲" in text for text in valid)
    assert not any("甲" in text for text in train)
    assert any("equal a held-out row once they are cut" in note for note in data.notes)
    with pytest.raises(DataError) as error:
        prepare(rows_of(long), tokenizer, TrainConfig(val_size=6, max_length=64))
    assert "--max_length" in str(error.value.fix)


def test_what_is_held_out_stays_held_out_when_rows_are_added(tokenizer: ChatTokenizer) -> None:
    fewer, more = (prepare(rows_of(questions(n)), tokenizer, TrainConfig(val_size=0.1)) for n in (100, 120))
    smallest = sorted(map(content_key, more.valid_conversations))
    assert smallest == [content_key(c) for c in more.valid_conversations]
    assert set(smallest[:5]) - {content_key(c) for c in fewer.valid_conversations} <= {
        content_key(recognise(q)[1]) for q in questions(120)[100:]
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


def test_the_digest_tells_data_apart(tokenizer: ChatTokenizer) -> None:
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
    with pytest.raises(DataError, match="1 of 1 rows"):
        prepare(rows_of([{"q": 1}]), tokenizer, TrainConfig())


def test_cut_rows_are_counted_and_rows_without_an_answer_left_rejected(tokenizer: ChatTokenizer) -> None:
    long = {"question": "问", "answer": "答" * 100}
    hopeless = {"question": "问" * 100, "answer": "答"}
    data = prepare(rows_of([long, hopeless, *questions(30)]), tokenizer, TrainConfig(max_length=50, val_size=0))
    assert data.truncated_rows == 1
    assert (data.train.lengths.max(), data.train.lengths[0]) == (50, 50)
    assert "max_length 50" in data.rejects[0].reason
    assert f"{data.truncated_tokens} tokens" in data.notes[0]
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
    assert f"--max_length {longest} would lose nothing, for {more:.0%} more tokens" in data.notes[0]
    assert data.truncated_tokens == whole.total_tokens - data.total_tokens
    enough = prepare(rows_of(values), tokenizer, TrainConfig(max_length=longest, val_size=0))
    assert enough.digest == whole.digest


def test_more_rejects_are_let_through_when_asked_for(tokenizer: ChatTokenizer) -> None:
    values: list[object] = [{"q": 1}] * 30 + questions(70)
    with pytest.raises(DataError, match="30 of 100 rows") as caught:
        prepare(rows_of(values), tokenizer, TrainConfig())
    assert "--max_rejects 0.31" in str(caught.value.fix)
    assert prepare(rows_of(values), tokenizer, TrainConfig(max_rejects=0.31)).rows == 70
    with pytest.raises(DataError, match="1 of 101 rows"):
        prepare(rows_of([{"q": 1}, *questions(100)]), tokenizer, TrainConfig(max_rejects=0))


def test_a_validation_set_of_its_own_shares_no_row_with_the_training_rows(tokenizer: ChatTokenizer) -> None:
    data = prepare(rows_of(questions(30)), tokenizer, TrainConfig(), rows_of(questions(40)[25:]))
    train, valid = said(data, tokenizer)
    assert (len(data.train), len(data.valid), len(train & valid)) == (25, 15, 0)
    assert len(data.valid_conversations) == 15
    assert "5 training rows" in data.notes[0]
    with pytest.raises(DataError, match="All training rows"):
        prepare(rows_of(questions(5)), tokenizer, TrainConfig(), rows_of(questions(6)))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAFIT_DATA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_rows(path: Path, values: list[object]) -> Path:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), "utf-8")
    return path


def never() -> Tokenizer:
    raise AssertionError("the tokenizer is not needed")


def entries(cache: Path) -> int:
    return sum(1 for path in cache.glob("*/meta.json"))


def test_the_second_time_no_row_is_read_and_no_tokenizer_loaded(
    demo_folder: Path, tokenizer: ChatTokenizer, cache: Path, tmp_path: Path
) -> None:
    values: list[object] = [*questions(300), {"q": 1}, *questions(10), {"text": "第一条"}]
    path = write_rows(tmp_path / "a.jsonl", values)
    config = TrainConfig(dataset_name=str(path))
    assert cached(config, demo_folder) is None
    fresh = drain(prepare_cached(config, demo_folder, lambda: tokenizer))
    for again in (drain(prepare_cached(config, demo_folder, never)), cached(config, demo_folder)):
        assert again is not None
        assert (again.digest, again.notes, again.formats, again.copies) == (
            fresh.digest, fresh.notes, {"question_answer": 310, "plain_text": 1}, 10
        )  # fmt: skip
        assert list(again.rejects) == list(fresh.rejects)
        assert again.valid_conversations == fresh.valid_conversations
        assert store_digest(again.train, again.valid) == store_digest(fresh.train, fresh.valid)
    plain = prepare(read_rows(str(path), "train"), tokenizer, config)
    assert plain.digest == fresh.digest
    assert store_digest(plain.train) == store_digest(fresh.train)
    # Another place and time, same content: the same entry.
    copy = tmp_path / "elsewhere.jsonl"
    copy.write_bytes(path.read_bytes())
    moved = drain(prepare_cached(TrainConfig(dataset_name=str(copy)), demo_folder, never))
    assert moved.digest == fresh.digest
    assert [(reject.file, reject.line) for reject in moved.rejects] == [(str(copy), 301)]
    with pytest.raises(DataError) as caught:
        cached(TrainConfig(dataset_name=str(copy), max_rejects=0), demo_folder)
    assert f"{copy}:301" in str(caught.value.found)
    assert entries(cache) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"max_length": 400}, {"system_prompt": "你是律师"}, {"date_string": "1 Jan 2025"}, {"train_on": "last"},
        {"field_map": "a=question"}, {"context_field": "a"}, {"dataset_split": "train[:99]"}, {"max_samples": 99},
    ],
    ids=str,
)  # fmt: skip
def test_every_setting_that_decides_samples_is_in_the_name(
    demo_folder: Path, tokenizer: ChatTokenizer, cache: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    base = {"dataset_name": str(write_rows(tmp_path / "a.jsonl", questions(100)))}
    drain(prepare_cached(TrainConfig.model_validate(base), demo_folder, lambda: tokenizer))
    assert cached(TrainConfig.model_validate(base | {"val_size": 3, "seed": 1, "max_rejects": 0.5}), demo_folder)
    assert cached(TrainConfig.model_validate(base | settings), demo_folder) is None
    assert cached(TrainConfig.model_validate(base), demo_folder, template="{{ messages }}") is None


def test_a_changed_file_and_a_damaged_entry_are_made_anew(
    demo_folder: Path, tokenizer: ChatTokenizer, cache: Path, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "a.jsonl", questions(10))
    config = TrainConfig(dataset_name=str(path))
    first = drain(prepare_cached(config, demo_folder, lambda: tokenizer)).digest
    status = path.stat()
    path.write_text(path.read_text("utf-8").replace("问 0", "问 X"), "utf-8")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time of change
    assert cached(config, demo_folder) is None
    assert drain(prepare_cached(config, demo_folder, lambda: tokenizer)).digest != first
    for file in cache.glob("*/input_ids.npy"):
        file.write_bytes(file.read_bytes()[:-4])
    assert cached(config, demo_folder) is None
    assert drain(prepare_cached(config, demo_folder, lambda: tokenizer)).rows == 10


def test_a_failed_build_leaves_nothing_and_bad_data_are_told_again_at_once(
    demo_folder: Path, tokenizer: ChatTokenizer, cache: Path, tmp_path: Path
) -> None:
    config = TrainConfig(dataset_name=str(write_rows(tmp_path / "a.jsonl", [{"q": 1}])))
    for load in (lambda: tokenizer, never):
        with pytest.raises(DataError, match="1 of 1 rows") as caught:
            drain(prepare_cached(config, demo_folder, load))
    listed = Path(str(caught.value.fix).split(": ")[1].removesuffix("."))
    assert json.loads(listed.read_text("utf-8"))["line"] == 1
    empty = TrainConfig(dataset_name=str(write_rows(tmp_path / "b.jsonl", [])), dataset_split="train")
    (tmp_path / "b.jsonl").write_text(" \n")
    with pytest.raises(DataError, match="no row"):
        drain(prepare_cached(empty, demo_folder, lambda: tokenizer))
    assert sorted(path.name for path in cache.iterdir()) == sorted(
        [path.parent.name for path in cache.glob("*/meta.json")] + [path.name for path in cache.glob("files")]
    )


def test_two_processes_may_build_the_same_entry_at_once(demo_folder: Path, cache: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", questions(2000))
    code = (
        "import sys; from pathlib import Path; from functools import partial\n"
        "from lorafit.config import TrainConfig; from lorafit.data.dataset import drain, prepare_cached\n"
        "from lorafit.engines.tokenizer import shared_tokenizer\n"
        f"folder = Path({str(demo_folder)!r}); config = TrainConfig(dataset_name={str(path)!r})\n"
        "print(drain(prepare_cached(config, folder, partial(shared_tokenizer, folder, None, False))).digest)"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    digests = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert digests[0] == digests[1]
    assert entries(cache) == 1
    light = code.replace("from lorafit.engines.tokenizer import shared_tokenizer\n", "").replace(
        "partial(shared_tokenizer, folder, None, False)", "None"
    )
    light += "\nassert not {'transformers', 'tokenizers', 'torch'} & set(sys.modules), 'light'"
    again = subprocess.run([sys.executable, "-c", light], capture_output=True, text=True, check=True)
    assert again.stdout == digests[0]


def test_what_nobody_opened_for_a_month_is_deleted(
    demo_folder: Path, tokenizer: ChatTokenizer, cache: Path, tmp_path: Path
) -> None:
    configs = [TrainConfig(dataset_name=str(write_rows(tmp_path / f"{n}.jsonl", questions(n)))) for n in (5, 6)]
    drain(prepare_cached(configs[0], demo_folder, lambda: tokenizer))
    for path in cache.glob("*/meta.json"):
        os.utime(path.parent, (0, 0))
    drain(prepare_cached(configs[1], demo_folder, lambda: tokenizer))
    assert [cached(config, demo_folder) is None for config in configs] == [True, False]


def test_other_processes_give_the_same_as_one(
    demo_folder: Path, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "BATCH", 16)
    rows = rows_of([*questions(150), {"q": 1}, *questions(50)])
    recipe = recipe_of(TrainConfig())
    load = partial(shared_tokenizer, demo_folder, None, False)
    one = list(build.make_all(rows, recipe, load, cores=1))
    many = list(build.make_all(rows, recipe, load, cores=2, patience=0))
    assert [share for share, _ in many] == [share for share, _ in one]
    for (_, made), (_, expected) in zip(many, one, strict=True):
        for name in vars(expected):
            assert np.array_equal(getattr(made, name), getattr(expected, name)), name


def test_a_script_without_a_guard_is_not_run_again_by_other_processes(demo_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from functools import partial; from pathlib import Path\n"
        "from lorafit.config import TrainConfig; from lorafit.data import build\n"
        "from lorafit.data.recipe import recipe_of; from lorafit.data.rows import Row\n"
        "from lorafit.engines.tokenizer import shared_tokenizer\n"
        "print('run'); build.BATCH = 16\n"
        "rows = [Row({'question': f'{i}', 'answer': 'a'}, 'f', i) for i in range(100)]\n"
        f"load = partial(shared_tokenizer, Path({str(demo_folder)!r}), None, False)\n"
        "made = list(build.make_all(rows, recipe_of(TrainConfig()), load, cores=2, patience=0))\n"
        "print(sum(len(one.lengths) for _, one in made))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["run", "100"]
    assert "Traceback" not in done.stderr


def test_a_process_that_dies_costs_nothing_but_time(tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "BATCH", 16)
    rows = rows_of(questions(100))
    dying = partial(die_elsewhere, os.getpid())
    loaded = {os.getpid(): tokenizer}
    monkeypatch.setattr(sys.modules[__name__], "HERE", loaded)
    made = [one for _, one in build.make_all(rows, recipe_of(TrainConfig()), dying, cores=2, patience=0)]
    assert sum(len(one.lengths) for one in made) == 100


HERE: dict[int, Tokenizer] = {}


def die_elsewhere(parent: int) -> Tokenizer:
    """The tokenizer in process `parent`; any other dies."""
    if os.getpid() != parent:
        os._exit(1)
    return HERE[parent]
