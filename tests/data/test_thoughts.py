"""Thoughts of reasoning models: samples begin as a chat is prompted, and the report says what becomes of thoughts."""

import copy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from support.thinking_templates import TEMPLATES

from lorafit.config import TrainConfig
from lorafit.data.conversation import Conversation, Message
from lorafit.data.dataset import PreparedData, prepare
from lorafit.data.readers.row import Row
from lorafit.data.render import Rendered, render
from lorafit.data.report import make_report
from lorafit.data.thoughts import ThoughtUse
from lorafit.engines.exported_template import exported_template
from lorafit.engines.tokenizer import ChatTokenizer, Thinking, load_tokenizer
from lorafit.errors import ConfigError, DataError, ExportError
from lorafit.reporters.text import data as words
from lorafit.reporters.text.data_json import data_json

DATE = "26 Jul 2024"
ASK, ANSWER = Message("user", "试用期多久？"), Message("assistant", "不超过六个月。")
IN_TEXT = Message("assistant", "<think>\n查法条\n</think>\n\n不超过六个月。")
IN_KEY = Message("assistant", "不超过六个月。", thought="查法条")
ROWS: dict[str, Conversation] = {
    "plain": [ASK, ANSWER],
    "system": [Message("system", "你是律师。"), ASK, ANSWER],
    "two answers": [ASK, ANSWER, ASK, ANSWER],
    "begins with <": [ASK, Message("assistant", "<b>六个月</b>")],
    "in text": [ASK, IN_TEXT],
    "in key": [ASK, IN_KEY],
    "two thoughts": [ASK, IN_TEXT, ASK, IN_TEXT],
}
THOUGHTS = ("in text", "in key", "two thoughts")
# Templates that do not write a thought of this form, nor open one that lorafit could write behind the prompt.
LOST = {("v31", kind) for kind in THOUGHTS} | {("smollm3", "in key"), ("plain", "in key")}

Make = Callable[[str], ChatTokenizer]


@pytest.fixture(scope="module")
def tokenizer_with(demo_folder: Path) -> Make:
    """A function that returns the demo's tokenizer with a template; the tags of thoughts are tokens, as in such models."""
    demo = load_tokenizer(demo_folder)

    def make(name: str) -> ChatTokenizer:
        tokenizer = ChatTokenizer(copy.deepcopy(demo.inner), demo.folder, TEMPLATES[name])
        tokenizer.inner.add_tokens(["<think>", "</think>", "<|Assistant|>", "<|User|>"], special_tokens=False)
        return tokenizer

    return make


def last_answer(made: Rendered) -> int:
    """Return the index of the first token of the last run of targets."""
    mask = made.sample.target_mask
    return int(np.flatnonzero(mask & ~np.roll(mask, 1))[-1])


def as_trained(made: Rendered, tokenizer: ChatTokenizer) -> ChatTokenizer:
    use = ThoughtUse()
    use.add([made.thoughts])
    return tokenizer.answering("as_trained", use.untrained)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_is_prompted_with_the_tokens_before_the_answer_in_training(
    tokenizer_with: Make, name: str, kind: str
) -> None:
    tokenizer, turns = tokenizer_with(name), ROWS[kind]
    made = render(turns, tokenizer, 4096, DATE)
    if kind in THOUGHTS:
        assert made.thoughts is not None
        assert made.thoughts.lost == ((name, kind) in LOST)
        said = tokenizer.decode_with_special(made.sample.input_ids[last_answer(made) :].tolist())
        assert made.thoughts.lost or "查法条" in said
    prompt = as_trained(made, tokenizer).prompt_ids(turns[:-1], DATE)
    assert prompt == made.sample.input_ids[: last_answer(made)].tolist()


@pytest.mark.parametrize("thinking", ["as_trained", "on", "off"])
@pytest.mark.parametrize("kind", ["plain", "in text"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_exported_template_prompts_so_by_default(
    tokenizer_with: Make, name: str, kind: str, thinking: Thinking
) -> None:
    own = tokenizer_with(name)
    made = render(ROWS[kind], own, 4096, DATE)
    if thinking != "as_trained" and own.thought_switch is None:
        with pytest.raises(ConfigError, match="no switch"):
            own.answering(thinking, "")
        return
    wanted = as_trained(made, own) if thinking == "as_trained" else own.answering(thinking, "")
    exported = ChatTokenizer.of(own, exported_template(wanted))
    for turns in ROWS.values():
        assert exported.prompt_ids(turns[:-1], DATE) == wanted.prompt_ids(turns[:-1], DATE)
        assert exported.render_text(turns, False, DATE) == wanted.render_text(turns, False, DATE)
    if thinking == "as_trained":
        assert exported.prompt_ids(ROWS[kind][:-1], DATE) == made.sample.input_ids[: last_answer(made)].tolist()


def test_a_template_that_cannot_be_changed_so_is_not_exported(tokenizer_with: Make) -> None:
    template = TEMPLATES["r1"].replace("<think>\\n", "<thi' + 'nk>\\n")
    tokenizer = ChatTokenizer.of(tokenizer_with("r1"), template).answering("as_trained", "<think>\n")
    with pytest.raises(ExportError, match="by default"):
        exported_template(tokenizer)


def test_a_switch_gives_the_templates_own_prompts(tokenizer_with: Make) -> None:
    ends = {
        (name, mode): tokenizer_with(name).answering(mode, "").render_text([ASK], True, DATE)
        for name in ("qwen3", "qwen35", "glm", "smollm3", "v31")
        for mode in ("on", "off")
    }
    assert ends["qwen3", "on"].endswith("<|im_start|>assistant\n")
    assert ends["qwen3", "off"].endswith("assistant\n<think>\n\n</think>\n\n")
    assert ends["qwen35", "on"].endswith("assistant\n<think>\n")
    assert ends["glm", "off"].endswith("试用期多久？/nothink<|assistant|>\n<think></think>")
    assert "Reasoning Mode: /no_think" in ends["smollm3", "off"]
    assert (ends["v31", "on"][-7:], ends["v31", "off"][-8:]) == ("<think>", "</think>")
    assert {name: tokenizer_with(name).thought_switch for name in ("v31", "channels", "r1", "plain")} == {
        "v31": "thinking", "channels": None, "r1": None, "plain": None,
    }  # fmt: skip


def test_thoughts_in_a_chats_history_are_written_as_the_template_does(tokenizer_with: Make) -> None:
    history = [ASK, Message("assistant", "查法条\n</think>\n\n不超过六个月。"), ASK]  # the prompt opened the thought
    for name in ("qwen3", "r1"):
        text = tokenizer_with(name).answering("as_trained", "").render_text(history, True, DATE)
        assert "查法条" not in text
        assert "不超过六个月。" in text


# The data of a run


def data_of(
    tokenizer_with: Make, name: str, kinds: dict[str, int], **settings: object
) -> tuple[list[Row], ChatTokenizer, TrainConfig]:
    """Return rows of `kinds` (kind to number of rows), a tokenizer and settings."""
    values = [
        {"messages": [_as_json(turn, f"{kind} {i} ") for turn in ROWS[kind]]}
        for kind, count in kinds.items()
        for i in range(count)
    ]
    rows = [Row(value, "f.jsonl", line) for line, value in enumerate(values, 1)]
    return rows, tokenizer_with(name), TrainConfig.model_validate({"val_size": 2, **settings})


def _as_json(turn: Message, head: str) -> dict[str, str]:
    text = turn.content if turn.role == "assistant" else head + turn.content
    return {"role": turn.role, "content": text, **({"reasoning_content": turn.thought} if turn.thought else {})}


def prepared(tokenizer_with: Make, name: str, kinds: dict[str, int], **settings: object) -> PreparedData:
    data = prepare(*data_of(tokenizer_with, name, kinds, **settings))
    data.thoughts.check()
    return data


def test_nothing_is_said_where_neither_data_nor_template_know_thoughts(tokenizer_with: Make) -> None:
    data = prepared(tokenizer_with, "plain", {"plain": 8, "two answers": 2})
    assert not data.thoughts.rows
    assert data.notes == []
    assert data.thoughts.untrained == ""
    report = make_report(*data_of(tokenizer_with, "plain", {"plain": 4}))
    assert "Thoughts of a reasoning model" not in [listing.title for listing in words.listings(report)]


@pytest.mark.parametrize(
    ("name", "kinds", "said"),
    [
        ("qwen3", {"plain": 8}, ["adds an empty thought", "in rows: 8"]),
        ("qwen3", {"in text": 5, "plain": 3}, ["Rows with thoughts", ": 5.", "adds an empty thought", "in rows: 3"]),
        ("qwen3", {"two thoughts": 6}, ["without thoughts, and they are learned so, in rows: 6.", "--train_on last"]),
        ("qwen35", {"in text": 8}, ["ends with `<think>\\n`, in training, chat and export"]),
        ("r1", {"plain": 8}, ["do not have `<think>\\n`", "chat and export leave it out"]),
        ("r1", {"in key": 8}, ["lorafit writes it, in rows: 8", "in training, chat and export"]),
        ("plain", {"in text": 8}, ["Rows with thoughts"]),
    ],
)
def test_the_training_and_the_report_say_what_becomes_of_thoughts(
    tokenizer_with: Make, name: str, kinds: dict[str, int], said: list[str]
) -> None:
    notes = " ".join(prepared(tokenizer_with, name, kinds).notes)
    assert [text for text in said if text not in notes] == []
    report = make_report(*data_of(tokenizer_with, name, kinds))
    table = next(table for table in words.listings(report) if table.title == "Thoughts of a reasoning model")
    shown = " ".join(row[0] for row in table.rows)
    assert [text for text in said if text not in shown] == []
    assert '"problem": null' in data_json(report)


def test_only_last_answers_need_no_word_on_earlier_ones(tokenizer_with: Make) -> None:
    notes = " ".join(prepared(tokenizer_with, "qwen3", {"two thoughts": 6}, train_on="last").notes)
    assert "earlier answers" not in notes


@pytest.mark.parametrize("name", ["v31", "plain"])
def test_thoughts_that_would_not_be_learned_stop_the_training(tokenizer_with: Make, name: str) -> None:
    kinds = {"in key": 3, "plain": 5}
    with pytest.raises(DataError, match="leaves out the thoughts") as error:
        prepared(tokenizer_with, name, kinds)
    assert error.value.found == "rows: 3, of 3 with thoughts"
    assert "--thoughts drop" in str(error.value.fix)
    report = make_report(*data_of(tokenizer_with, name, kinds))
    assert any("Training refuses these rows" in row[0] for table in words.listings(report) for row in table.rows)
    assert prepared(tokenizer_with, name, kinds, thoughts="drop").rows == 8


def test_a_few_odd_rows_do_not_stop_the_training(tokenizer_with: Make) -> None:
    data = prepared(tokenizer_with, "r1", {"in text": 40, "plain": 1})
    assert data.thoughts.untrained == ""
    assert any("start in another way before the answer: 1." in note for note in data.notes)
    data = prepared(tokenizer_with, "smollm3", {"in text": 40, "in key": 1})
    assert any("leaves out the thought of the last answer, in rows: 1." in note for note in data.notes)


def test_an_answer_that_is_not_learned_does_not_count(tokenizer_with: Make) -> None:
    unlearned = Message("assistant", IN_KEY.content, thought=IN_KEY.thought, learned=False)
    made = render([ASK, ANSWER, ASK, unlearned], tokenizer_with("plain"), 4096, DATE)
    assert made.thoughts is not None
    assert not made.thoughts.lost
    assert not made.thoughts.usual


def test_rows_that_begin_in_two_ways_stop_the_training(tokenizer_with: Make) -> None:
    kinds = {"in text": 4, "plain": 4}
    with pytest.raises(DataError, match="only some rows") as error:
        prepared(tokenizer_with, "r1", kinds)
    assert error.value.found == "rows that start with it: 4; rows without: 4"
    dropped = prepared(tokenizer_with, "r1", kinds, thoughts="drop")
    assert dropped.thoughts.untrained == "<think>\n"
    assert prepared(tokenizer_with, "thinking_only", kinds).rows == 8  # an empty thought makes them alike


@pytest.mark.parametrize(("name", "learned_so"), [("r1", False), ("qwen35", True), ("qwen3", False)])
def test_earlier_answers_are_named_where_they_begin_unlike_the_last(
    tokenizer_with: Make, name: str, learned_so: bool
) -> None:
    notes = " ".join(prepared(tokenizer_with, name, {"two answers": 8}).notes)
    assert ("--train_on last" in notes) == learned_so


def test_a_template_with_a_switch_trains_both_ways(tokenizer_with: Make) -> None:
    data = prepared(tokenizer_with, "qwen35_off", {"in text": 6, "plain": 2})
    assert data.thoughts.untrained == "\n</think>\n\n"
    assert any("--thinking on" in note for note in data.notes)


def test_without_thoughts_only_the_answers_are_learned(tokenizer_with: Make) -> None:
    data = prepared(tokenizer_with, "qwen3", {"in text": 3, "in key": 3, "plain": 2}, thoughts="drop")
    tokenizer = tokenizer_with("qwen3")
    texts = [tokenizer.decode_with_special(sample.input_ids.tolist()) for sample in (*data.train, *data.valid)]
    assert not any("查法条" in text for text in texts)
    assert data.thoughts.count("carries") == 0


def test_counts_survive_the_cache(tokenizer_with: Make) -> None:
    use = prepared(tokenizer_with, "r1", {"plain": 8}).thoughts
    assert ThoughtUse.from_json(use.to_json()) == use


# The templates of TRL

TRL = find_spec("trl")
FOLDER = Path((TRL.submodule_search_locations or [""])[0] if TRL else "") / "chat_templates"
MODELS = sorted(path.stem for path in FOLDER.glob("*.jinja") if "think" in path.read_text("utf-8"))
MODELS = [name for name in MODELS if not name.endswith("_training")]


@pytest.mark.skipif(TRL is None, reason="trl, whose template files are read, is not installed")
@pytest.mark.parametrize("name", MODELS)
def test_known_models_are_prompted_as_trained_in_chat_and_export(demo_folder: Path, name: str) -> None:
    template = (FOLDER / f"{name}.jinja").read_text("utf-8")
    tokenizer = load_tokenizer(demo_folder, template=template)
    tokenizer.inner.add_tokens(["<think>", "</think>"], special_tokens=False)
    for kind in ("plain", "in text", "in key", "system"):
        turns = ROWS[kind]
        made = render(turns, tokenizer, 4096, DATE)
        chat = as_trained(made, tokenizer)
        assert chat.prompt_ids(turns[:-1], DATE) == made.sample.input_ids[: last_answer(made)].tolist(), kind
        exported = ChatTokenizer.of(tokenizer, exported_template(chat))
        assert exported.prompt_ids(turns[:-1], DATE) == chat.prompt_ids(turns[:-1], DATE), kind
