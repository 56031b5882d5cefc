"""The sample cache: tokenization on all cores, reuse, invalidation by settings and files, removal of old entries."""

import json
import os
import subprocess
import sys
from functools import partial
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from support.letters import Letters
from support.paths import ROOT, TESTS
from support.rows import questions, rows_of

from lorafit.config import TrainConfig
from lorafit.data import tokenize
from lorafit.data.conversation import BadRow
from lorafit.data.dataset import load_cached, prepare, prepare_cached
from lorafit.data.formats import to_conversation
from lorafit.data.preprocessing import preprocessing_of
from lorafit.data.rejects import Reject, RejectFile
from lorafit.data.render import Tokenizer
from lorafit.data.sources import read_rows
from lorafit.data.store import digest as store_digest
from lorafit.engines.tokenizer import ChatTokenizer, load_tokenizer, shared_tokenizer
from lorafit.errors import DataError
from lorafit.messages import set_language
from lorafit.progress import exhaust


@pytest.fixture(scope="module")
def tokenizer(demo_folder: Path) -> ChatTokenizer:
    return load_tokenizer(demo_folder)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAFIT_DATA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_rows(path: Path, values: list[object]) -> Path:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), "utf-8")
    return path


def refuse_to_load() -> Tokenizer:
    raise AssertionError("the tokenizer is not needed")


def count_entries(cache: Path) -> int:
    return sum(1 for path in cache.glob("*/meta.json"))


def test_the_second_time_no_row_is_read_and_no_tokenizer_loaded(
    demo_folder: Path, tokenizer: ChatTokenizer, cache: Path, tmp_path: Path
) -> None:
    values: list[object] = [*questions(300), {"q": 1}, *questions(10), {"text": "第一条"}]
    path = write_rows(tmp_path / "a.jsonl", values)
    config = TrainConfig(dataset_name=str(path))
    assert load_cached(config, demo_folder) is None
    fresh = exhaust(prepare_cached(config, demo_folder, lambda: tokenizer))
    for again in (exhaust(prepare_cached(config, demo_folder, refuse_to_load)), load_cached(config, demo_folder)):
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
    # A copy with another path and another modification time has the same entry.
    copy = tmp_path / "elsewhere.jsonl"
    copy.write_bytes(path.read_bytes())
    moved = exhaust(prepare_cached(TrainConfig(dataset_name=str(copy)), demo_folder, refuse_to_load))
    assert moved.digest == fresh.digest
    assert [(reject.file, reject.line) for reject in moved.rejects] == [(str(copy), 301)]
    with pytest.raises(DataError) as caught:
        load_cached(TrainConfig(dataset_name=str(copy), max_rejects=0), demo_folder)
    assert f"{copy}:301" in str(caught.value.found)
    assert count_entries(cache) == 1


def reasons_of_bad_rows(values: list[object]) -> list[str]:
    reasons = []
    for value in values:
        with pytest.raises(BadRow) as caught:
            to_conversation(value)
        reasons.append(str(caught.value.reason))
    return reasons


@pytest.mark.parametrize(("filled", "read"), [("zh", "en"), ("en", "zh"), ("zh", "zh"), ("en", "en")])
def test_reasons_of_a_cache_are_in_the_language_of_its_reader(
    demo_folder: Path, tokenizer: ChatTokenizer, cache: Path, tmp_path: Path, filled: str, read: str
) -> None:
    cases = map(json.loads, (TESTS / "data" / "formats.jsonl").read_text("utf-8").splitlines())
    bad = [case["row"] for case in cases if "reason" in case and "surrogate" not in case["reason"]]
    path = write_rows(tmp_path / "a.jsonl", [*bad, *questions(5)])
    config = TrainConfig(dataset_name=str(path), max_rejects=0.99)
    set_language(filled)
    fresh = exhaust(prepare_cached(config, demo_folder, lambda: tokenizer))
    assert [reject.reason for reject in fresh.rejects] == reasons_of_bad_rows(bad)
    set_language(read)
    again = load_cached(config, demo_folder)
    assert again is not None
    assert [reject.reason for reject in again.rejects] == reasons_of_bad_rows(bad)
    with pytest.raises(DataError) as caught:
        load_cached(config.model_copy(update={"max_rejects": 0.0}), demo_folder)
    assert f"{path}:1: {reasons_of_bad_rows(bad[:1])[0]}" in str(caught.value.found)
    listed = RejectFile(next(cache.glob("*/rejects.jsonl")), {str(path): "b.jsonl"}).current_file()
    written = [json.loads(line) for line in listed.read_text("utf-8").splitlines()]
    assert [reject["reason"] for reject in written] == reasons_of_bad_rows(bad)


@pytest.mark.parametrize(
    "again", [None, {"no": "text"}, {"text": "{x}", "with": {}}], ids=["missing", "other", "wrong"]
)
def test_a_cached_reject_without_a_recipe_keeps_its_words(tmp_path: Path, again: object) -> None:
    line = {"file": "a.jsonl", "line": 1, "reason": "as it was", **({} if again is None else {"again": again})}
    file = write_rows(tmp_path / "rejects.jsonl", [line])
    set_language("zh")
    assert list(RejectFile(file)) == [Reject("a.jsonl", 1, "as it was")]


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
    exhaust(prepare_cached(TrainConfig.model_validate(base), demo_folder, lambda: tokenizer))
    assert load_cached(TrainConfig.model_validate(base | {"val_size": 3, "seed": 1, "max_rejects": 0.5}), demo_folder)
    assert load_cached(TrainConfig.model_validate(base | settings), demo_folder) is None
    assert load_cached(TrainConfig.model_validate(base), demo_folder, template="{{ messages }}") is None


def test_a_changed_file_and_a_damaged_entry_are_made_anew(
    demo_folder: Path, tokenizer: ChatTokenizer, cache: Path, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "a.jsonl", questions(10))
    config = TrainConfig(dataset_name=str(path))
    first = exhaust(prepare_cached(config, demo_folder, lambda: tokenizer)).digest
    status = path.stat()
    path.write_text(path.read_text("utf-8").replace("问 0", "问 X"), "utf-8")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size and modification time
    assert load_cached(config, demo_folder) is None
    assert exhaust(prepare_cached(config, demo_folder, lambda: tokenizer)).digest != first
    for file in cache.glob("*/input_ids.npy"):
        file.write_bytes(file.read_bytes()[:-4])
    assert load_cached(config, demo_folder) is None
    assert exhaust(prepare_cached(config, demo_folder, lambda: tokenizer)).rows == 10


def test_a_failed_build_leaves_nothing_and_bad_data_are_reported_again_at_once(
    demo_folder: Path, tokenizer: ChatTokenizer, cache: Path, tmp_path: Path
) -> None:
    config = TrainConfig(dataset_name=str(write_rows(tmp_path / "a.jsonl", [{"q": 1}])))
    for load in (lambda: tokenizer, refuse_to_load):
        with pytest.raises(DataError, match="rejected rows: 1 of 1\\.") as caught:
            exhaust(prepare_cached(config, demo_folder, load))
    listed = Path(str(caught.value.fix).split(": ")[1].removesuffix("."))
    assert json.loads(listed.read_text("utf-8"))["line"] == 1
    empty = TrainConfig(dataset_name=str(write_rows(tmp_path / "b.jsonl", [])), dataset_split="train")
    (tmp_path / "b.jsonl").write_text(" \n")
    with pytest.raises(DataError, match="no row"):
        exhaust(prepare_cached(empty, demo_folder, lambda: tokenizer))
    assert sorted(path.name for path in cache.iterdir()) == sorted(
        [path.parent.name for path in cache.glob("*/meta.json")] + [path.name for path in cache.glob("files")]
    )


def build_at_once(both_ready: Barrier, results: SimpleQueue[str], path: Path, folder: Path) -> None:
    both_ready.wait(timeout=60)
    results.put(exhaust(prepare_cached(TrainConfig(dataset_name=str(path)), folder, Letters)).digest)


def test_two_processes_may_build_the_same_entry_at_once(demo_folder: Path, cache: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", questions(2000))
    context = get_context("spawn")
    results: SimpleQueue[str] = context.SimpleQueue()
    work = (context.Barrier(2), results, path, demo_folder)
    both = [context.Process(target=build_at_once, args=work) for _process in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    digests = [results.get() for _process in both]
    assert digests[0] == digests[1]
    assert count_entries(cache) == 1
    light = (
        "import sys; from pathlib import Path; from lorafit.config import TrainConfig\n"
        "from lorafit.data.dataset import prepare_cached; from lorafit.progress import exhaust\n"
        f"folder = Path({str(demo_folder)!r}); config = TrainConfig(dataset_name={str(path)!r})\n"
        "print(exhaust(prepare_cached(config, folder, None)).digest)\n"
        "assert not {'transformers', 'tokenizers', 'torch'} & set(sys.modules), 'light'"
    )
    again = subprocess.run([sys.executable, "-c", light], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == digests[0]


def test_what_nobody_opened_for_a_month_is_deleted(
    demo_folder: Path, tokenizer: ChatTokenizer, cache: Path, tmp_path: Path
) -> None:
    configs = [TrainConfig(dataset_name=str(write_rows(tmp_path / f"{n}.jsonl", questions(n)))) for n in (5, 6)]
    exhaust(prepare_cached(configs[0], demo_folder, lambda: tokenizer))
    for path in cache.glob("*/meta.json"):
        os.utime(path.parent, (0, 0))
    exhaust(prepare_cached(configs[1], demo_folder, lambda: tokenizer))
    assert [load_cached(config, demo_folder) is None for config in configs] == [True, False]


def test_other_processes_give_the_same_as_one(demo_folder: Path) -> None:
    # More batches than two worker processes hold at a time (four), and the last one is not full.
    rows = rows_of([*questions(4 * tokenize.BATCH), {"q": 1}, *questions(tokenize.BATCH + 50)])
    recipe = preprocessing_of(TrainConfig())
    load = partial(shared_tokenizer, demo_folder, None, False)
    one = list(tokenize.tokenize_all(rows, recipe, load, cores=1))
    many = list(tokenize.tokenize_all(rows, recipe, load, cores=2, patience=0))
    assert [share for share, _ in many] == [share for share, _ in one]
    for (_, made), (_, expected) in zip(many, one, strict=True):
        for name in vars(expected):
            assert np.array_equal(np.asarray(getattr(made, name), object), np.asarray(getattr(expected, name), object))


def test_a_script_without_a_guard_is_not_run_again_by_other_processes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from lorafit.config import TrainConfig; from lorafit.data import tokenize\n"
        "from lorafit.data.preprocessing import preprocessing_of; from lorafit.data.readers.row import Row\n"
        "from support.letters import Letters\n"
        "print('run')\n"
        "rows = [Row({'question': f'{i}', 'answer': 'a'}, 'f', i) for i in range(1000)]\n"
        "made = list(tokenize.tokenize_all(rows, preprocessing_of(TrainConfig()), Letters, cores=2, patience=0))\n"
        "print(sum(len(one.lengths) for _, one in made))\n"
    )
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{TESTS}"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.split() == ["run", "1000"]
    assert "Traceback" not in done.stderr


def die_elsewhere(parent: int) -> Tokenizer:
    """Return a tokenizer in process `parent`; end any other process."""
    if os.getpid() != parent:
        os._exit(1)
    return Letters()


def test_a_process_that_dies_costs_nothing_but_time() -> None:
    rows, recipe, dying = rows_of(questions(1000)), preprocessing_of(TrainConfig()), partial(die_elsewhere, os.getpid())
    made = [one for _, one in tokenize.tokenize_all(rows, recipe, dying, cores=2, patience=0)]
    assert sum(len(one.lengths) for one in made) == 1000
