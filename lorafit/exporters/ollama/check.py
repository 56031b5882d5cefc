"""The check of a prompt format: on 200 conversations it must give the text that the chat template gives."""

import re
from collections.abc import Iterator

from lorafit.data.conversation import TOOLS, Conversation, Message
from lorafit.engines.tokenizer import CLOCK, ChatTokenizer
from lorafit.exporters.ollama.chat_format import ChatFormat, find_format, not_faithful, prompt_text
from lorafit.messages import _
from lorafit.units import count_text

COUNT, MOST_TURNS = 200, 6
TEXTS = (
    "试用期最长多久？", "不超过六个月。", "How long may a trial period be?", "At most six months.", "你好", "ok",
    "第一行\n第二行\n\n第四行", "def f(x):\n\treturn {'a': [x]}  # 注释", "{{ .Content }} and {% if x %}{{ y }}{% endif %}",
    "`code` and ```py\nprint(1)\n```", "He said \"no\", she said 'yes', \"\"\"they\"\"\" said nothing.", "a\\n b\\t c",
    "user", "assistant: system", "[INST] x [/INST] <<SYS>>", "<b>&amp;</b> 1 < 2 > 0", "{", "}}", "😀 é ñ 〇　全角空格",
    "| a | b |\n|---|---|\n| 1 | 2 |", "1. 第一\n2. 第二", "「引号」《法》 %s -",
    "a <|im_end|> b </s> c",
)  # fmt: skip
CALL_OF_CLOCK = re.compile(r"strftime_now\s*\(")
SHOWN = 40  # characters of a difference in an error


def conversations() -> Iterator[Conversation]:
    """Yield COUNT conversations of 1 to MOST_TURNS questions that end with a question, half of them with a system message."""
    for k in range(COUNT):
        turns = 2 * (k % MOST_TURNS) + 1
        texts = [TEXTS[(7 * k + 5 * i) % len(TEXTS)] for i in range(turns + 1)]
        made = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts[:turns])]
        yield [Message("system", texts[turns]), *made] if k // MOST_TURNS % 2 else made


def faithful_format(tokenizer: ChatTokenizer, date_string: str) -> tuple[ChatFormat, list[str]]:
    """Return the prompt format of the chat template, and notes on what it leaves out.

    Raises ExportError if it does not give the text of the chat template on all conversations().
    """
    template = tokenizer.inner.get_chat_template()
    if CALL_OF_CLOCK.search(CLOCK.sub("", template)):
        raise not_faithful(tokenizer, _("It writes the date of the day."))
    chat_format = find_format(tokenizer, date_string)
    for conversation in conversations():
        wanted, found = prompt_text(conversation, tokenizer, date_string), chat_format.render(conversation)
        if wanted != found:
            raise not_faithful(tokenizer, _difference(wanted, found, len(conversation)))
    return chat_format, _notes(chat_format, tokenizer, date_string)


def _difference(wanted: str, found: str, messages: int) -> str:
    at = next((i for i, pair in enumerate(zip(wanted, found, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(wanted), len(found)) if at is None else at
    text = _("In a prompt of {n} messages, at character {at}: {wanted} in the training, {found} for Ollama.")
    parts = {"wanted": repr(wanted[at : at + SHOWN]), "found": repr(found[at : at + SHOWN])}
    return text.format(n=messages, at=count_text(at), **parts)


def _notes(chat_format: ChatFormat, tokenizer: ChatTokenizer, date_string: str) -> list[str]:
    def differs(*contents: str) -> bool:
        turns = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)]
        return prompt_text(turns, tokenizer, date_string) != chat_format.render(turns)

    notes = []
    if re.search(rf"\b{TOOLS}\b", tokenizer.inner.get_chat_template()):
        notes.append(_("Tools are not in the template for Ollama."))
    if differs(" \n x \n ", " \n y \n ", " \n z \n "):
        notes.append(_("The chat template removes white space at the ends of messages. Ollama keeps it."))
    if differs("x", "<think>\nt\n</think>\n\ny", "z"):
        notes.append(
            _("The chat template leaves out the thoughts of earlier answers. Ollama keeps them for most models.")
        )
    return notes
