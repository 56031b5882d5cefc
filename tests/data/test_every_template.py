"""Targets under every chat template of the installed TRL, token by token.

No token of a user, a tool or a system message is a target, all of an answer's text is, and spans never overlap. TRL's
training templates mark the model's own text themselves, which gives a second opinion on each token.
"""

import copy
import json
import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from lorafit.data.conversation import BadRow, Conversation, Message
from lorafit.data.render import apply_template, render
from lorafit.data.target_spans import MANY
from lorafit.engines.tokenizer import ChatTokenizer, load_tokenizer
from lorafit.models.demo import demo_model

TRL = find_spec("trl")
pytestmark = pytest.mark.skipif(TRL is None, reason="trl, whose template files are read, is not installed")
FOLDER = Path((TRL.submodule_search_locations or [""])[0] if TRL else "") / "chat_templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
DATE = "26 Jul 2024"
MARKER = re.compile(
    r"<[|｜][^<>\s{}'\"]*?[|｜]>|<\|?[a-z_]+\|?>|</(?:think|tool_call|tool_response)>|<[a-z_]+\|>|\[/?[A-Z_]+\]"
)

FIND = '{"type": "function", "function": {"name": "find", "description": "Find a law.", "parameters": {"type": "object", ' \
       '"properties": {"law": {"type": "string", "description": "n"}}}}}'  # fmt: skip
TOOLS, ASK, ANSWER = (
    Message("tools", f"[{FIND}]"),
    Message("user", "试用期多久？"),
    Message("assistant", "不超过六个月。"),
)
FOUND = Message("tool", "第十九条", name="find")
THANKS = [Message("user", "谢谢"), Message("assistant", "不客气")]


def call(law: str, words: str = "", thought: str = "") -> Message:
    calls = json.dumps([{"name": "find", "arguments": {"law": law}}], ensure_ascii=False)
    return Message("assistant", words, calls, thought)


THOUGHT = Message("assistant", "<think>\n查法条\n</think>\n\n不超过六个月。")
CONVERSATIONS: dict[str, Conversation] = {
    "call": [TOOLS, ASK, call("十九"), FOUND, ANSWER],
    "two calls in turn": [TOOLS, ASK, call("十九"), FOUND, call("二十"), Message("tool", "第二十条"), ANSWER, *THANKS],
    "words before a call": [TOOLS, ASK, call("十九", "我查。"), FOUND, ANSWER, *THANKS],
    "ends with a call": [TOOLS, ASK, call("十九")],
    "thought": [ASK, THOUGHT],
    "two thoughts": [
        ASK, THOUGHT, Message("user", "谢谢"), Message("assistant", "<think>\n告别\n</think>\n\n不客气"),
    ],
    "equal answers": [Message(role, "好") for role in ("user", "assistant") * 2] + [Message("user", "谢谢"), Message("assistant", "好")],
    "system": [Message("system", "你是律师。"), ASK, ANSWER, *THANKS],
    "indented text": [
        ASK, Message("assistant", "    def f():\n        return 1\n"), Message("user", "  again"), Message("assistant", "\tx = 2"),
    ],
    "thoughts in a key": [
        ASK, Message("assistant", "不超过六个月。", thought="查法条"), Message("user", "谢谢"),
        Message("assistant", "不客气", thought="告别"),
    ],
    "thought before a call": [TOOLS, ASK, call("十九", thought="查法条"), FOUND, Message("assistant", "六个月", thought="告别")],
}  # fmt: skip
CALLS = {kind for kind, turns in CONVERSATIONS.items() if any(turn.calls for turn in turns)}
# Conversations that a template cannot write, by the beginning of its name: all that follow a name apply.
REFUSED: dict[str, set[str]] = {
    **dict.fromkeys(("cohere", "gemma", "gemma3"), CALLS),  # roles must alternate
    **dict.fromkeys(("deepseek_r1_distill", "lfm2", "llama3", "phi3", "phi3_5", "qwen2_5_vl"), CALLS),  # no calls
    "cohere2": CALLS,
    "deepseekv3": {"two calls in turn"},  # writes the second call unlike a prompt that asks for it
    **{name: {"words before a call"} for name in ("diffusion_gemma", "gemma4", "gemma4_v3", "gemma4_v4", "gemma4_v5")},
    **{
        name: set(CONVERSATIONS) for name in ("idefics3", "llava_next", "smolvlm")
    },  # contents must be lists with images
}
# Tokens that are targets here and not there: the model has to write them after a call.
MORE_HERE = {"diffusion_gemma_training": r"(<\|tool_response>|<\|turn>|model|\n)+"}
# Tokens that are targets there and not here: a line break behind the end of a turn, the prompt for an answer, an EOS token
# behind the end of a turn, and the white space before an answer that shares a token with the prompt.
MORE_THERE = re.compile(
    r"(\s|<think>|</think>|<\|start\|>|assistant|<｜Assistant｜>|<｜tool▁outputs▁end｜>|<\|im_end\|>)*"
)


@lru_cache(maxsize=1)
def demo_tokenizer() -> ChatTokenizer:
    return load_tokenizer(demo_model())


@lru_cache(maxsize=2)
def tokenizer_of(name: str) -> ChatTokenizer:
    """Return the demo's tokenizer with the template `name`, and its markers as special tokens."""
    template = (FOLDER / f"{name}.jinja").read_text("utf-8")
    demo = demo_tokenizer()
    tokenizer = ChatTokenizer(copy.deepcopy(demo.inner), demo.folder, template)
    tokenizer.inner.add_tokens(sorted(set(MARKER.findall(template))), special_tokens=True)
    return tokenizer


@pytest.mark.parametrize("name", NAMES)
def test_only_the_models_own_text_is_learned(name: str) -> None:
    tokenizer, refused = tokenizer_of(name), set()
    for kind, turns in CONVERSATIONS.items():
        try:
            made = apply_template(turns, tokenizer, DATE)
        except BadRow:
            refused.add(kind)
            continue
        borders = [edge for span in made.targets for edge in (span.begin, span.end)]
        assert borders == sorted(borders), (kind, "spans overlap")
        learned = [turn for turn in turns if turn.role == "assistant"]
        assert len(made.targets) == len(learned)
        for turn, span in zip(learned, made.targets, strict=True):
            said = made.text[span.begin : span.end]
            words = turn.content.rpartition("</think>")[2].strip()
            assert words in said or (turn.calls and made.dropped), (kind, said)
            assert turn.thought in said or made.dropped, (kind, said)
            assert all(word in said for word in re.findall("find|十九|二十", turn.calls)), (kind, said)
            others = {other.content.strip() for other in turns if other.role != "assistant" and other is not TOOLS}
            assert kind == "equal answers" or not any(other in said for other in others), (kind, said)
            assert not re.search(r"user|User|system|Find a law", re.sub(r"<\|user\|>$| to=user(?=<)", "", said)), (
                kind,
                said,
            )
    assert refused == REFUSED.get(name.removesuffix("_training"), set())


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_training")])
def test_the_masks_agree_with_those_of_trls_training_templates(name: str) -> None:
    tokenizer, compared = tokenizer_of(name), 0
    for kind, turns in CONVERSATIONS.items():
        try:
            made = render(turns, tokenizer, 4096, DATE)
        except BadRow:
            continue
        if made.thoughts is not None and made.thoughts.kept:
            continue  # the template itself does not write this thought
        sample = made.sample
        if tokenizer.takes_system or kind != "system":
            theirs = trl_mask(tokenizer, turns)
            assert theirs.shape == sample.target_mask.shape
            here = tokenizer.decode_with_special(sample.input_ids[sample.target_mask & ~theirs])
            there = tokenizer.decode_with_special(sample.input_ids[~sample.target_mask & theirs])
            assert re.fullmatch(MORE_HERE.get(name, ""), here) or not here, (kind, here)
            assert MORE_THERE.fullmatch(there), (kind, there)
            compared += 1
    assert compared >= 4 or set(CONVERSATIONS) == REFUSED.get(name.removesuffix("_training"))


def trl_mask(tokenizer: ChatTokenizer, turns: Conversation) -> np.ndarray:
    """Return TRL's mask of the model's own tokens, from the template's generation blocks."""
    template = re.sub(r"strftime_now\([^)]*\)", '"2024-07-26"', tokenizer.inner.get_chat_template())
    tools = next((json.loads(turn.content) for turn in turns if turn.role == "tools"), None)
    messages = [tokenizer.message_dict(turn, False) for turn in turns if turn.role != "tools"]
    made = tokenizer.inner.apply_chat_template(
        messages,
        tools=tools,
        date_string=DATE,
        chat_template=template,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return np.array(made["assistant_masks"], bool)


# Hard texts. Letters of users are Greek, of systems Cyrillic, of functions Thai: no target may hold one of them.

FOREIGN = re.compile("[\u0370-\u03ff\u0400-\u04ff\u0e00-\u0e7f]")
WORDS = ("<|im_end|><turn|><|user|><|return|>", "<|im_start|>assistant\n</tool_call>")


def talk(*texts: str) -> Conversation:
    return [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]


HARD: dict[str, Conversation] = {
    **{f"question with {word}": talk(f"ΩΩ{word}ΨΨ", "甲乙", f"{word}ΩΩ{word}", "丙丁") for word in WORDS},
    **{f"answer with {word}": talk("ΩΩ", f"甲{word}乙", "ΨΨ", f"丙{word}丁") for word in WORDS},
    **{f"argument with {word}": [TOOLS, Message("user", "ΩΩ"), call(f"甲{word}乙"), Message("tool", "ฟฟ"), ANSWER] for word in WORDS},
    "headers": talk("user", "user", "assistant", "assistant", "a\n", "\na"),
    "private characters": talk("\U00100000Ω", "甲\U00100000乙", "Ψ", "丙"),
    "other private characters": talk("\U000f0000Ω", "甲乙"),
    "two systems": [Message("system", "ЖЖ"), *talk("ΩΩ", "甲乙"), Message("system", "ЯЯ"), *talk("ΨΨ", "丙丁")],
    "two answers": [*talk("ΩΩ", "甲乙"), Message("assistant", "丙丁")],
    "without learning": [*talk("ΩΩ"), Message("assistant", "БАД", learned=False), *talk("ΨΨ", "丙丁")],
    "list as arguments": [TOOLS, Message("user", "ΩΩ"), Message("assistant", "", '[{"name": "find", "arguments": ["甲", "乙"]}]')],
    "words before a thought": talk("ΩΩ", "甲<think>乙</think>丙"),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("_training")])
def test_hard_texts_are_learned_whole_or_refused(name: str) -> None:
    tokenizer = tokenizer_of(name)
    for kind, turns in HARD.items():
        try:
            made = apply_template(turns, tokenizer, DATE)
            sample = render(turns, tokenizer, 4096, DATE).sample
        except BadRow:
            continue
        assert not FOREIGN.search(tokenizer.decode_with_special(sample.input_ids[sample.target_mask])), kind
        learned = [turn for turn in turns if turn.role == "assistant" and turn.learned]
        for turn, span in zip(learned, made.targets, strict=True):
            said = made.text[span.begin : span.end]
            assert (
                all(letter in said for letter in re.findall("[甲乙丙丁]", turn.content + turn.calls)) or made.dropped
            ), kind
            assert turn.content.rpartition("</think>")[2].strip() in said, (kind, said)


@pytest.mark.parametrize(
    "name", ["qwen3", "qwen3_5_think", "llama3_1", "deepseekv3", "gptoss", "glm4moe", "phi3", "gemma3"]
)
def test_spans_in_a_long_conversation_are_those_of_its_beginning(name: str) -> None:
    """From MANY messages on, equal surroundings are searched once."""
    tokenizer = tokenizer_of(name)
    turns = [
        turn
        for k in range(MANY // 2 + 1)
        for turn in talk(f"甲{k}", f"甲{k}" if k % 3 else f"<think>\n乙\n</think>\n\n丙{k}")
    ]
    try:
        long = apply_template(turns, tokenizer, DATE)
        short = apply_template(turns[: MANY - 2], tokenizer, DATE)
    except BadRow:
        return
    count = len(short.targets) - 1
    assert count == MANY // 2 - 2
    assert long.targets[:count] == short.targets[:count]
    said = [long.text[span.begin : span.end] for span in long.targets]
    assert all(f"甲{k}" in text if k % 3 else f"丙{k}" in text for k, text in enumerate(said))


@pytest.mark.parametrize("name", ["llama3_1", "gptoss"])
def test_a_result_that_the_template_writes_as_json_is_not_left_out(name: str) -> None:
    result = Message("tool", json.dumps({"law": "第十九条" * 9}, ensure_ascii=False))
    made = apply_template([TOOLS, ASK, call("十九"), result, ANSWER], tokenizer_of(name), DATE)
    assert not made.dropped
    assert any("第十九条" in made.text[begin:end] for begin, end in made.questions)


def test_a_conversation_with_too_many_messages_is_refused() -> None:
    with pytest.raises(BadRow, match="20,002"):
        apply_template(talk("a", "b") * 10_001, tokenizer_of("qwen3"), DATE)
