"""Tests of the tokenizer wrapper: prompts, stop IDs, chat templates, saving, and errors for broken folders."""

import json
import shutil
from pathlib import Path

import pytest

from lorafit.data.conversation import Message
from lorafit.data.render import render
from lorafit.engines.tokenizer import load_tokenizer, read_template
from lorafit.errors import ConfigError, ModelError

DATE = "26 Jul 2024"
QUESTION = Message("user", "试用期多久？")


def test_a_prompt_ends_where_the_answer_begins_and_decodes_back(demo_folder: Path) -> None:
    tokenizer = load_tokenizer(demo_folder)
    answer = Message("assistant", "六个月。")
    sample = render([QUESTION, answer], tokenizer, 512, DATE).sample
    prompt = tokenizer.prompt_ids([QUESTION], DATE)
    assert sample.input_ids[: len(prompt)].tolist() == prompt
    assert int(sample.target_mask.argmax()) == len(prompt)
    assert tokenizer.decode(sample.input_ids[sample.target_mask].tolist()) == "六个月。"
    assert "律师" in tokenizer.decode(tokenizer.prompt_ids([QUESTION], DATE, "你是律师"))


def test_stop_ids_join_tokenizer_template_and_generation_config(demo_folder: Path, tmp_path: Path) -> None:
    for file in demo_folder.glob("*token*.json"):
        shutil.copy(file, tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 5]}))
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}<|im_start|>{% endfor %}")
    tokenizer = load_tokenizer(tmp_path)
    end, start = tokenizer.inner.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])
    assert tokenizer.stop_ids == {0, 5, end, start}
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match="generation settings"):
        _ = load_tokenizer(tmp_path).stop_ids


def test_a_tokenizer_without_a_template_gets_chatml_reports_it_and_saves_it(demo_folder: Path, tmp_path: Path) -> None:
    for file in demo_folder.glob("*token*.json"):
        shutil.copy(file, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.uses_default_template
    tokenizer.inner.eos_token = "<|endoftext|>"
    text = tokenizer.render_text([QUESTION, Message("assistant", "a")], False, DATE)
    assert text == "<|im_start|>user\n试用期多久？<|im_end|>\n<|im_start|>assistant\na<|im_end|><|endoftext|>\n"
    sample = render([QUESTION, Message("assistant", "a")], tokenizer, 512, DATE).sample
    assert tokenizer.inner.decode(sample.input_ids[sample.target_mask]) == "a<|im_end|><|endoftext|>"
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    saved = load_tokenizer(tmp_path / "saved")
    assert saved.render_text([QUESTION], True, DATE) == tokenizer.render_text([QUESTION], True, DATE)
    assert not saved.uses_default_template


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_missing_or_broken_tokenizer_is_a_model_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.where == str(tmp_path)


def test_many_texts_are_encoded_as_each_alone(demo_folder: Path) -> None:
    tokenizer = load_tokenizer(demo_folder)
    texts = ["试用期多久？", "", " a  b\n<|im_end|>", "😀" * 50]
    assert tokenizer.encode_many(texts) == [tokenizer.encode_with_offsets(text) for text in texts]


def test_a_chat_template_is_given_as_a_file_or_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages }}", "utf-8")
    assert read_template(None) is None
    assert read_template("{{ messages }}") == read_template(str(tmp_path / "t.jinja")) == "{{ messages }}"
    with pytest.raises(ConfigError, match="chat template cannot be read"):
        read_template(str(tmp_path / "none"))
