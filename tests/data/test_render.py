"""Rendering: only the assistant's text and its end token are in the loss. The expected masks are written by hand."""

import random
from pathlib import Path

import numpy as np
import pytest

from lorafit.data.conversation import BadRow, Conversation, Message
from lorafit.data.render import place_system, render, target_mask
from lorafit.data.target_spans import TargetSpan
from lorafit.engines.tokenizer import ChatTokenizer, load_tokenizer

DATE = "26 Jul 2024"
SMOL = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# transformers removes the line break after a block, so these templates write each line break inside {{ }}.
LLAMA = r"""{{ '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: ' }}
{{- date_string if date_string is defined else strftime_now("%d %b %Y") }}{{ '\n\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% set messages = messages[1:] %}{% endif %}
{{- '<|eot_id|>' }}{% for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
GEMMA = r"""{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<end_of_turn>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
QWEN3 = r"""{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{{- m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
CLOCK = "{% for m in messages %}{{ strftime_now('%Y-%m-%d') }} {{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}" \
    "{% if add_generation_prompt %}{{ strftime_now('%Y-%m-%d') }} assistant: {% endif %}"  # fmt: skip
MARKERS = {
    LLAMA: ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    GEMMA: ["<start_of_turn>", "<end_of_turn>"],
}

SINGLE = [Message("user", "试用期多久？"), Message("assistant", "不超过六个月。 😀")]
SYSTEM = [Message("system", "你是律师。"), *SINGLE]
MULTI = [*SINGLE, Message("user", "谢谢"), Message("assistant", "  不客气 \n")]


@pytest.fixture(scope="module")
def chatml(demo_folder: Path) -> ChatTokenizer:
    return load_tokenizer(demo_folder)


def with_template(folder: Path, template: str) -> ChatTokenizer:
    tokenizer = load_tokenizer(folder, template=template)
    tokenizer.inner.add_tokens(MARKERS.get(template, []), special_tokens=True)
    return tokenizer


def check(tokenizer: ChatTokenizer, conversation: Conversation, pieces: list[tuple[str, bool]]) -> None:
    """Assert that ids and mask equal those of `pieces`, pairs (text, whether it is in the loss), tokenized one by one.

    Before a word, this tokenizer splits white space in front of its last character, so a piece has to end there too.
    """
    sample = render(conversation, tokenizer, 4096, DATE).sample
    pieces_ids = [tokenizer.inner(text, add_special_tokens=False)["input_ids"] for text, _ in pieces]
    assert sample.input_ids.tolist() == [i for ids in pieces_ids for i in ids]
    expected = [target for ids, (_, target) in zip(pieces_ids, pieces, strict=True) for _ in ids]
    assert sample.target_mask.tolist() == expected
    assert (sample.input_ids.dtype, sample.target_mask.dtype) == (np.int32, np.bool_)


def test_chatml_single_turn(chatml: ChatTokenizer) -> None:
    check(chatml, SINGLE, [
        (f"<|im_start|>system\n{SMOL}<|im_end|>\n<|im_start|>user\n试用期多久？<|im_end|>\n<|im_start|>assistant\n", False),
        ("不超过六个月。 😀<|im_end|>", True), ("\n", False),
    ])  # fmt: skip


def test_chatml_system(chatml: ChatTokenizer) -> None:
    check(chatml, SYSTEM, [
        ("<|im_start|>system\n你是律师。<|im_end|>\n<|im_start|>user\n试用期多久？<|im_end|>\n<|im_start|>assistant\n", False),
        ("不超过六个月。 😀<|im_end|>", True), ("\n", False),
    ])  # fmt: skip


def test_chatml_multi_turn_keeps_spaces_of_the_answer(chatml: ChatTokenizer) -> None:
    check(chatml, MULTI, [
        (f"<|im_start|>system\n{SMOL}<|im_end|>\n<|im_start|>user\n试用期多久？<|im_end|>\n<|im_start|>assistant\n", False),
        ("不超过六个月。 😀<|im_end|>", True),
        ("\n<|im_start|>user\n谢谢<|im_end|>\n<|im_start|>assistant", False),
        ("\n ", False),  # one token: the prompt's line break and the answer's first space
        (" 不客气 \n<|im_end|>", True), ("\n", False),
    ])  # fmt: skip


def test_llama_with_its_date_fixed_and_its_bos_once(demo_folder: Path) -> None:
    head = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n"
    header = [("<|start_header_id|>assistant<|end_header_id|>\n", False), ("\n", False)]
    user = [("<|eot_id|><|start_header_id|>user<|end_header_id|>\n", False), ("\n试用期多久？<|eot_id|>", False)]
    answer = ("不超过六个月。 😀<|eot_id|>", True)
    tokenizer = with_template(demo_folder, LLAMA)
    check(tokenizer, SINGLE, [(head, False), *user, *header, answer])
    check(tokenizer, SYSTEM, [(head[:-1], False), ("\n你是律师。", False), *user, *header, answer])
    thanks = [("<|start_header_id|>user<|end_header_id|>\n", False), ("\n谢谢<|eot_id|>", False)]
    check(tokenizer, MULTI, [(head, False), *user, *header, answer, *thanks, *header, ("不客气<|eot_id|>", True)])
    assert tokenizer.inner.convert_tokens_to_ids("<|eot_id|>") in tokenizer.stop_ids


def test_gemma_takes_the_system_text_before_the_first_question(demo_folder: Path) -> None:
    tokenizer = with_template(demo_folder, GEMMA)
    bos = tokenizer.inner.bos_token
    answer = ("不超过六个月。 😀<end_of_turn>", True)
    check(tokenizer, SYSTEM, [
        (f"{bos}<start_of_turn>user\n你是律师。\n\n试用期多久？<end_of_turn>\n<start_of_turn>model\n", False), answer, ("\n", False),
    ])  # fmt: skip
    check(tokenizer, MULTI, [
        (f"{bos}<start_of_turn>user\n试用期多久？<end_of_turn>\n<start_of_turn>model\n", False), answer,
        ("\n<start_of_turn>user\n谢谢<end_of_turn>\n<start_of_turn>model\n", False), ("不客气<end_of_turn>", True), ("\n", False),
    ])  # fmt: skip
    assert not tokenizer.takes_system
    assert tokenizer.inner.convert_tokens_to_ids("<end_of_turn>") in tokenizer.stop_ids
    with pytest.raises(BadRow, match="roles must alternate"):
        render([SINGLE[0], *SINGLE], tokenizer, 512, DATE)


def test_a_thought_in_the_last_turn_only_does_not_move_the_masks(demo_folder: Path) -> None:
    check(with_template(demo_folder, QWEN3), MULTI, [
        ("<|im_start|>user\n试用期多久？<|im_end|>\n<|im_start|>assistant\n", False),
        ("不超过六个月。 😀<|im_end|>", True),
        ("\n<|im_start|>user\n谢谢<|im_end|>\n<|im_start|>assistant\n", False),
        ("<think>\n\n</think>\n\n  不客气 \n<|im_end|>", True), ("\n", False),
    ])  # fmt: skip


def test_a_template_that_asks_the_clock_gets_the_fixed_date(demo_folder: Path) -> None:
    check(with_template(demo_folder, CLOCK), SINGLE, [
        ("2024-07-26 user: 试用期多久？<|im_end|>2024-07-26 assistant:", False), (" ", False),
        ("不超过六个月。 😀<|im_end|>", True),
    ])  # fmt: skip


def test_a_thought_that_only_the_prompt_writes_does_not_move_the_masks(demo_folder: Path) -> None:
    template = QWEN3.replace("loop.last", "false").replace(
        "assistant\\n' }}{% endif %}", "assistant\\n<think>\\n' }}{% endif %}"
    )
    assert "<think>\\n' }}{% endif %}" in template
    check(with_template(demo_folder, template), SINGLE, [
        ("<|im_start|>user\n试用期多久？<|im_end|>\n<|im_start|>assistant\n", False),
        ("不超过六个月。 😀<|im_end|>", True), ("\n", False),
    ])  # fmt: skip


def test_an_eos_behind_the_whole_conversation_is_not_learned(demo_folder: Path) -> None:
    template = r"{% for m in messages %}{{ m.role + ':' + m.content + '<|im_end|>\n' }}{% endfor %}"
    template += "{{ 'assistant:' if add_generation_prompt else '<|endoftext|>' }}"
    check(with_template(demo_folder, template), MULTI, [
        ("user:试用期多久？<|im_end|>\nassistant:", False), ("不超过六个月。 😀<|im_end|>", True),
        ("\nuser:谢谢<|im_end|>\nassistant:", False), ("  不客气 \n<|im_end|>", True), ("\n<|endoftext|>", False),
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m.content }}{{ loop.revindex }};{% endfor %}", "changes the text of message 2"),
        (
            "{% for m in messages %}{{ m.content if loop.last or m.role == 'user' }};{% endfor %}",
            "changes the text of message 2",
        ),
        ("{% for m in messages %}{{ m.content[0].text }}<|im_end|>{% endfor %}", "changes the text of message 2"),
        (
            "{% for m in messages %}{{ m.role + m.content.split('气')[0] }};{% endfor %}",
            "changes the text of message 4",
        ),
        ("{{ messages[0].content + 1 }}", "rejected by the chat template: "),
        ("{% for %}", "rejected by the chat template: "),
    ],
)
def test_a_template_whose_turns_cannot_be_placed_is_refused(demo_folder: Path, template: str, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        render(MULTI, with_template(demo_folder, template), 512, DATE)


def test_a_conversation_that_begins_with_the_assistant_is_refused(chatml: ChatTokenizer) -> None:
    with pytest.raises(BadRow, match="starts with an assistant message"):
        render(SINGLE[1:], chatml, 512, DATE)


def test_a_long_answer_is_cut_at_its_end_and_counted(chatml: ChatTokenizer) -> None:
    whole = render(SINGLE, chatml, 512, DATE)
    assert (whole.tokens_cut, whole.targets_cut) == (0, 0)
    first_target = int(whole.sample.target_mask.argmax())
    short = render(SINGLE, chatml, first_target + 1, DATE)
    assert short.tokens_cut == len(whole.sample) - first_target - 1
    assert short.targets_cut == whole.sample.num_targets - 1
    assert short.sample.input_ids.tolist() == whole.sample.input_ids[: first_target + 1].tolist()
    assert short.sample.num_targets == 1
    with pytest.raises(BadRow, match=f"no answer left within max_length {first_target}.*--max_length"):
        render(SINGLE, chatml, first_target, DATE)


def test_the_middle_of_a_long_question_goes_before_any_target(chatml: ChatTokenizer) -> None:
    question = "".join(f"第{i}条，" for i in range(200))
    turns = [Message("system", "你是律师。"), Message("user", question), *SINGLE[1:], *MULTI[2:]]
    whole, short = render(turns, chatml, 4096, DATE), render(turns, chatml, 256, DATE)
    assert 250 < len(short.sample) <= 256
    assert (short.tokens_cut, short.targets_cut) == (len(whole.sample) - len(short.sample), 0)
    text = chatml.inner.decode(short.sample.input_ids)
    assert text.startswith("<|im_start|>system\n你是律师。<|im_end|>\n<|im_start|>user\n第0条，")
    assert "第199条，<|im_end|>\n<|im_start|>assistant\n不超过六个月。 😀<|im_end|>" in text
    assert "第100条" not in text
    assert "\ufffd" not in text  # no character is split
    targets = [sample.input_ids[sample.target_mask].tolist() for sample in (whole.sample, short.sample)]
    assert targets[0] == targets[1]


def test_the_longest_texts_are_shortened_first_and_each_keeps_its_ends(chatml: ChatTokenizer) -> None:
    turns = [
        Message("user", "短问" * 10),
        Message("assistant", "答"),
        Message("user", "长" * 300),
        Message("assistant", "完"),
    ]
    whole = len(render(turns, chatml, 4096, DATE).sample)
    short = render(turns, chatml, whole - 200, DATE)
    assert "短问" * 10 in chatml.inner.decode(short.sample.input_ids)
    assert short.targets_cut == 0
    hard = render(turns, chatml, 128, DATE)
    assert len(hard.sample) <= 128


def test_a_plain_text_is_learned_whole(chatml: ChatTokenizer) -> None:
    sample = render([Message("text", "第一条 合同有效。")], chatml, 512, DATE).sample
    assert chatml.decode_with_special(sample.input_ids.tolist()) == "第一条 合同有效。<|im_end|>"
    assert sample.target_mask.tolist() == [False, *[True] * (len(sample) - 1)]


def test_text_that_a_template_omits_is_noted(demo_folder: Path) -> None:
    silent = "{% for m in messages if m.role != 'system' %}{{ m.role + ':' + m.content }}<|im_end|>{% endfor %}" \
        "{% if add_generation_prompt %}assistant:{% endif %}"  # fmt: skip
    tools = [Message("tools", '[{"name": "find"}]'), *SINGLE]
    assert render(tools, with_template(demo_folder, silent), 512, DATE).dropped
    assert not render(SINGLE, with_template(demo_folder, silent), 512, DATE).dropped


def test_the_system_prompt_goes_to_conversations_without_one() -> None:
    prompt = Message("system", "p")
    assert place_system(SINGLE, "p", takes_system=True) == [prompt, *SINGLE]
    assert place_system(SYSTEM, "p", takes_system=True) == SYSTEM
    assert place_system(SINGLE, "p", takes_system=False)[0] == Message("user", "p\n\n试用期多久？")
    assert place_system(SINGLE, None, takes_system=False) == SINGLE


def test_offsets_without_leading_spaces_and_split_characters_are_masked_whole() -> None:
    # The texts of the tokens: "ab:", "  ", "好" in two tokens, " x" without its space, and the end token.
    offsets = [(0, 3), (5, 5), (5, 6), (5, 6), (7, 8), (8, 9)]
    assert target_mask(np.array(offsets), [TargetSpan(3, 9)]).tolist() == [False, True, True, True, True, True]
    assert target_mask(np.array(offsets), [TargetSpan(4, 8)]).tolist() == [False, False, True, True, True, False]
    assert target_mask(np.array(offsets), [TargetSpan(0, 9)]).tolist()[0] is False


def test_targets_are_the_assistants_text_whatever_the_characters(chatml: ChatTokenizer) -> None:
    rng = random.Random(0)
    for _ in range(200):
        contents = [
            "".join(rng.choices(" \n\tab甲乙😀é。\u3000\0\u202e|<>", k=rng.randrange(1, 20))) + "x" for _ in range(4)
        ]
        turns = [Message(role, text) for role, text in zip(["user", "assistant"] * 2, contents, strict=True)]
        sample = render(turns, chatml, 4096, DATE).sample
        targets = chatml.inner.decode(sample.input_ids[sample.target_mask])
        expected = f"{contents[1]}<|im_end|>{contents[3]}<|im_end|>"
        # One token may hold the prompt's line break and white space at the start of the answer. It is not in the loss.
        assert "".join(targets.split()) == "".join(expected.split())
        assert targets == expected or contents[1][0].isspace() or contents[3][0].isspace()
