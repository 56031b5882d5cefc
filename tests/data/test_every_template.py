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
            sample = render(turns, tokenizer, 4096, DATE).sample
        except BadRow:
            continue
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
