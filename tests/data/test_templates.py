"""Loss masks with the chat templates of well-known models, compared token by token with texts marked by hand.

The templates are files of the TRL package, used with the demo's tokenizer. Their markers are added as special tokens.
In the marked texts, ⟦ and ⟧ enclose the text that is in the loss.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from lorafit.data.conversation import BadRow, Conversation, Message
from lorafit.data.render import render
from lorafit.engines.tokenizer import ChatTokenizer, load_tokenizer

TRL = find_spec("trl")
pytestmark = pytest.mark.skipif(TRL is None, reason="trl, whose template files are read, is not installed")
FOLDER = Path((TRL.submodule_search_locations or [""])[0] if TRL else "") / "chat_templates"
DATE = "26 Jul 2024"

ASK, ANSWER = Message("user", "试用期多久？"), Message("assistant", "不超过六个月。")
CONVERSATIONS = {
    "single": [ASK, ANSWER],
    "system": [Message("system", "你是律师。"), ASK, ANSWER],
    "multi": [ASK, ANSWER, Message("user", "谢谢"), Message("assistant", "不客气")],
    "thought": [
        ASK, Message("assistant", "<think>\n查法条\n</think>\n\n不超过六个月。"),
        Message("user", "谢谢"), Message("assistant", "<think>\n告别\n</think>\n\n不客气"),
    ],
    "tools": [
        Message("tools", '[{"type": "function", "function": {"name": "find", "parameters": {}}}]'), ASK,
        Message("assistant", "", '[{"name": "find", "arguments": {"law": 19}}]'), Message("tool", "第十九条"), ANSWER,
    ],
    "two calls": [
        Message("tools", '[{"type": "function", "function": {"name": "find", "parameters": {}}}]'), ASK,
        Message("assistant", "我查。", '[{"name": "find", "arguments": {}}, {"name": "count", "arguments": {}}]'),
        Message("tool", "第十九条"), Message("tool", "1"), ANSWER, Message("user", "谢谢"), Message("assistant", "不客气"),
    ],
}  # fmt: skip

BOS, EOS = "<|im_start|>", "<|im_end|>"
SMOL = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
QWEN = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
CHATML_SYSTEM = "<|im_start|>system\n你是律师。<|im_end|>\n"
CHATML_ASK = "<|im_start|>user\n试用期多久？<|im_end|>\n<|im_start|>assistant\n"
CHATML_THANKS = "\n<|im_start|>user\n谢谢<|im_end|>\n<|im_start|>assistant\n"
CHATML_END = "⟦不超过六个月。<|im_end|>⟧\n"
CHATML_MULTI = CHATML_ASK + "⟦不超过六个月。<|im_end|>⟧" + CHATML_THANKS + "⟦不客气<|im_end|>⟧\n"
CHATML_THOUGHT = (
    CHATML_ASK + "⟦<think>\n查法条\n</think>\n\n不超过六个月。<|im_end|>⟧" + CHATML_THANKS
    + "⟦<think>\n告别\n</think>\n\n不客气<|im_end|>⟧\n"
)  # fmt: skip
LLAMA_ASK = (
    "<|start_header_id|>user<|end_header_id|>\n\n试用期多久？<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
LLAMA_THANKS = (
    "<|start_header_id|>user<|end_header_id|>\n\n谢谢<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
LLAMA_END = "⟦不超过六个月。<|eot_id|>⟧"
LLAMA_MULTI = LLAMA_ASK + LLAMA_END + LLAMA_THANKS + "⟦不客气<|eot_id|>⟧"
LLAMA_THOUGHT = (
    LLAMA_ASK + "⟦<think>\n查法条\n</think>\n\n不超过六个月。<|eot_id|>⟧" + LLAMA_THANKS
    + "⟦<think>\n告别\n</think>\n\n不客气<|eot_id|>⟧"
)  # fmt: skip
LLAMA_32 = (
    BOS + "<|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
)
LLAMA_32_TOOLS = (
    BOS + "<|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nGiven the following functions, "
    "please respond with a JSON for a function call with its proper arguments that best answers the given prompt.\n\n"
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    'Do not use variables.\n\n{\n    "type": "function",\n    "function": {\n        "name": "find",\n'
    '        "parameters": {}\n    }\n}\n\n试用期多久？<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n'
    '⟦{"name": "find", "parameters": {"law": 19}}<|eot_id|>⟧<|start_header_id|>ipython<|end_header_id|>\n\n"第十九条"'
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦不超过六个月。<|eot_id|>⟧"
)
QWEN_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function "
    'signatures within <tools></tools> XML tags:\n<tools>\n{"type": "function", "function": {"name": "find", '
    '"parameters": {}}}\n</tools>\n\nFor each function call, return a json object with function name and arguments '
    'within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": '
    "<args-json-object>}\n</tool_call><|im_end|>\n" + CHATML_ASK
)
QWEN_CALL = '⟦<tool_call>\n{"name": "find", "arguments": {"law": 19}}\n</tool_call><|im_end|>⟧'
QWEN_REPLY = "\n<|im_start|>user\n<tool_response>\n第十九条\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
QWEN_CALLS = (
    '⟦我查。\n<tool_call>\n{"name": "find", "arguments": {}}\n</tool_call>\n'
    '<tool_call>\n{"name": "count", "arguments": {}}\n</tool_call><|im_end|>⟧\n'
    "<|im_start|>user\n<tool_response>\n第十九条\n</tool_response>\n<tool_response>\n1\n</tool_response><|im_end|>\n"
    "<|im_start|>assistant\n⟦不超过六个月。<|im_end|>⟧" + CHATML_THANKS
)
QWEN_25_HEAD = QWEN.removesuffix("<|im_end|>\n") + "\n\n"
GEMMA_ASK = "<start_of_turn>user\n试用期多久？<end_of_turn>\n<start_of_turn>model\n"
GEMMA_THANKS = "\n<start_of_turn>user\n谢谢<end_of_turn>\n<start_of_turn>model\n"
GEMMA_END = "⟦不超过六个月。<end_of_turn>⟧"
GEMMA = {
    "single": BOS + GEMMA_ASK + GEMMA_END + "\n",
    "system": BOS + "<start_of_turn>user\n你是律师。\n\n试用期多久？<end_of_turn>\n<start_of_turn>model\n" + GEMMA_END + "\n",
    "multi": BOS + GEMMA_ASK + GEMMA_END + GEMMA_THANKS + "⟦不客气<end_of_turn>⟧\n",
    "thought": BOS + GEMMA_ASK + "⟦<think>\n查法条\n</think>\n\n不超过六个月。<end_of_turn>⟧" + GEMMA_THANKS
    + "⟦<think>\n告别\n</think>\n\n不客气<end_of_turn>⟧\n",
    "tools": "roles must alternate",
}  # fmt: skip
PHI_ASK = "<|user|>\n试用期多久？<|end|>\n<|assistant|>\n"
DEEPSEEK_ASK = "<｜User｜>试用期多久？<｜Assistant｜>"
DEEPSEEK_END = "⟦不超过六个月。<｜end▁of▁sentence｜>⟧"
DEEPSEEK = {
    "single": BOS + DEEPSEEK_ASK + DEEPSEEK_END,
    "system": BOS + "你是律师。" + DEEPSEEK_ASK + DEEPSEEK_END,
    "multi": BOS + DEEPSEEK_ASK + DEEPSEEK_END + "<｜User｜>谢谢<｜Assistant｜>⟦不客气<｜end▁of▁sentence｜>⟧",
    "thought": BOS + DEEPSEEK_ASK + "⟦\n\n不超过六个月。<｜end▁of▁sentence｜>⟧<｜User｜>谢谢<｜Assistant｜>"
    "<think>\n⟦告别\n</think>\n\n不客气<｜end▁of▁sentence｜>⟧",
}  # fmt: skip
DEEPSEEK_CALL = (
    '⟦<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>find\n```json\n{"law": 19}\n```'
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>⟧<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>第十九条"
    "<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
)
DROPPED = {
    ("qwen3", "thought"),
    ("deepseekv3", "thought"),
    ("deepseek_r1_distill", "thought"),
}  # omit the thoughts of earlier turns

# The text of each conversation by each template, marked by hand. A text without marks is the reason of the refusal.
MARKED: dict[str, dict[str, str]] = {
    "demo": {
        "single": SMOL + CHATML_ASK + CHATML_END,
        "system": CHATML_SYSTEM + CHATML_ASK + CHATML_END,
        "multi": SMOL + CHATML_MULTI,
        "thought": SMOL + CHATML_THOUGHT,
        "tools": "does not write function calls, such as message 3",
    },
    "llama3": {
        "single": BOS + LLAMA_ASK + LLAMA_END,
        "system": BOS + "<|start_header_id|>system<|end_header_id|>\n\n你是律师。<|eot_id|>" + LLAMA_ASK + LLAMA_END,
        "multi": BOS + LLAMA_MULTI,
        "thought": BOS + LLAMA_THOUGHT,
        "tools": "does not write function calls, such as message 3",
    },
    "llama3_2": {
        "single": LLAMA_32 + "<|eot_id|>" + LLAMA_ASK + LLAMA_END,
        "system": LLAMA_32 + "你是律师。<|eot_id|>" + LLAMA_ASK + LLAMA_END,
        "multi": LLAMA_32 + "<|eot_id|>" + LLAMA_MULTI,
        "thought": LLAMA_32 + "<|eot_id|>" + LLAMA_THOUGHT,
        "tools": LLAMA_32_TOOLS,
        "two calls": "only supports single tool-calls",
    },
    "qwen2_5": {
        "single": QWEN + CHATML_ASK + CHATML_END,
        "system": CHATML_SYSTEM + CHATML_ASK + CHATML_END,
        "multi": QWEN + CHATML_MULTI,
        "thought": QWEN + CHATML_THOUGHT,
        "tools": QWEN_25_HEAD + QWEN_TOOLS + QWEN_CALL + QWEN_REPLY + CHATML_END,
        "two calls": QWEN_25_HEAD + QWEN_TOOLS + QWEN_CALLS + "⟦不客气<|im_end|>⟧\n",
    },
    "qwen3": {  # the last answer includes an empty thought, as the model generates it
        "single": CHATML_ASK + "⟦<think>\n\n</think>\n\n不超过六个月。<|im_end|>⟧\n",
        "system": CHATML_SYSTEM + CHATML_ASK + "⟦<think>\n\n</think>\n\n不超过六个月。<|im_end|>⟧\n",
        "multi": CHATML_ASK + "⟦不超过六个月。<|im_end|>⟧" + CHATML_THANKS + "⟦<think>\n\n</think>\n\n不客气<|im_end|>⟧\n",
        "thought": CHATML_ASK + "⟦不超过六个月。<|im_end|>⟧" + CHATML_THANKS + "⟦<think>\n告别\n</think>\n\n不客气<|im_end|>⟧\n",
        "tools": "<|im_start|>system\n" + QWEN_TOOLS + QWEN_CALL + QWEN_REPLY
        + "⟦<think>\n\n</think>\n\n不超过六个月。<|im_end|>⟧\n",
        "two calls": "<|im_start|>system\n" + QWEN_TOOLS + QWEN_CALLS + "⟦<think>\n\n</think>\n\n不客气<|im_end|>⟧\n",
    },
    "gemma": GEMMA,
    "gemma3": GEMMA,
    "phi3": {
        "single": PHI_ASK + "⟦不超过六个月。<|end|>⟧\n" + EOS,
        "system": "<|system|>\n你是律师。<|end|>\n" + PHI_ASK + "⟦不超过六个月。<|end|>⟧\n" + EOS,
        "multi": PHI_ASK + "⟦不超过六个月。<|end|>⟧\n<|user|>\n谢谢<|end|>\n<|assistant|>\n⟦不客气<|end|>⟧\n" + EOS,
        "thought": PHI_ASK + "⟦<think>\n查法条\n</think>\n\n不超过六个月。<|end|>⟧\n<|user|>\n谢谢<|end|>\n<|assistant|>\n"
        "⟦<think>\n告别\n</think>\n\n不客气<|end|>⟧\n" + EOS,
        "tools": "does not write function calls, such as message 3",
    },
    "deepseekv3": DEEPSEEK | {"tools": BOS + DEEPSEEK_ASK + DEEPSEEK_CALL + DEEPSEEK_END},
    "deepseek_r1_distill": DEEPSEEK | {"tools": "does not write function calls, such as message 3"},
}  # fmt: skip
MARKERS = {
    "llama": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "gemma": ["<start_of_turn>", "<end_of_turn>"],
    "phi3": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
    "qwen": ["<tool_call>", "</tool_call>", "<think>", "</think>"],
    "deepseek": ["<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>",
                 "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "<think>", "</think>"],
}  # fmt: skip


@pytest.fixture(scope="module", params=MARKED)
def template(request: pytest.FixtureRequest, demo_folder: Path) -> tuple[str, ChatTokenizer]:
    name = str(request.param)
    text = None if name == "demo" else (FOLDER / f"{name}.jinja").read_text("utf-8")
    tokenizer = load_tokenizer(demo_folder, template=text)
    markers = [marker for family, words in MARKERS.items() if name.startswith(family) for marker in words]
    tokenizer.inner.add_tokens(markers, special_tokens=True)
    return name, tokenizer


def ids_and_mask(marked: str, tokenizer: ChatTokenizer) -> tuple[list[int], list[bool]]:
    """Return the ids of the text without its marks, and for each id whether it is between marks."""
    text, loss = "", []
    inside = False
    for character in marked:
        if character in "⟦⟧":
            inside = character == "⟦"
        else:
            text += character
            loss.append(inside)
    encoded = tokenizer.inner(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], [all(loss[begin:end]) for begin, end in encoded["offset_mapping"]]


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_masks_are_those_marked_by_hand(template: tuple[str, ChatTokenizer], kind: str) -> None:
    name, tokenizer = template
    if kind not in MARKED[name]:
        pytest.skip(f"{name} has no {kind}")
    marked = MARKED[name][kind]
    if "⟦" not in marked:
        with pytest.raises(BadRow, match=marked):
            render(CONVERSATIONS[kind], tokenizer, 4096, DATE)
        return
    rendered = render(CONVERSATIONS[kind], tokenizer, 4096, DATE)
    ids, mask = ids_and_mask(marked, tokenizer)
    assert rendered.sample.input_ids.tolist() == ids
    assert rendered.sample.target_mask.tolist() == mask
    assert rendered.dropped == ((name, kind) in DROPPED)


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_the_last_turn_alone_is_the_last_of_the_spans(template: tuple[str, ChatTokenizer], kind: str) -> None:
    name, tokenizer = template
    head, _, last = MARKED[name][kind].rpartition("⟦")
    ids, mask = ids_and_mask(head.replace("⟦", "").replace("⟧", "") + "⟦" + last, tokenizer)
    sample = render(CONVERSATIONS[kind], tokenizer, 4096, DATE, train_on="last").sample
    assert (sample.input_ids.tolist(), sample.target_mask.tolist()) == (ids, mask)


def test_training_and_chat_have_the_same_prompt(template: tuple[str, ChatTokenizer]) -> None:
    """The prompt of a chat is the text before the answer in training, except for a thought that a template begins."""
    _, tokenizer = template
    conversation: Conversation = CONVERSATIONS["system"]
    sample = render(conversation, tokenizer, 4096, DATE).sample
    prompt = tokenizer.decode_with_special(tokenizer.prompt_ids(conversation[:-1], DATE))
    before = tokenizer.decode_with_special(sample.input_ids[: int(np.argmax(sample.target_mask))].tolist())
    assert prompt.startswith(before)
    assert prompt[len(before) :].strip() in ("", "<think>")
