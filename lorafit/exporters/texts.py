"""The texts on which an export is compared with the training: rows of the run, and public texts that come with lorafit.

The rows are validation rows, which the run did not train on. The public texts are short questions with answers.
"""

import json
from collections.abc import Iterator
from importlib import resources
from typing import NamedTuple

import numpy as np

from lorafit.data.conversation import BadRow, Conversation, Message
from lorafit.data.micro_batch import Sample
from lorafit.data.render import TemplateRefused, render
from lorafit.engines.tokenizer import ChatTokenizer
from lorafit.errors import DataError, HubError, RunError
from lorafit.evaluation.validation import load_validation_rows
from lorafit.exporters.base import ExportSource
from lorafit.progress import ProgressCallback

PROBE = "probe.jsonl"
ROWS, FEW_ROWS = 14, 6  # rows of the run; public texts beside them, and rows of a large model
TOKENS, POSITIONS = 200, 120  # tokens of a text; positions of all texts whose whole distribution is kept
LARGE = 2_000_000_000  # parameters
MOST_NUMBERS = 1 << 25  # log-probabilities that are kept of each model: 128 MiB
STRINGS = 1000  # that both tokenizers must split alike
CALLS = json.dumps([{"name": "find_statute", "arguments": {"topic": "lease", "year": 2021}}])
FUNCTION = {"name": "find_statute", "description": "Find a statute.", "parameters": {
    "type": "object", "properties": {"topic": {"type": "string"}, "year": {"type": "integer"}}, "required": ["topic"]}}  # fmt: skip
TOOLS_TEXT = json.dumps([{"type": "function", "function": FUNCTION}])


class ProbeText(NamedTuple):
    """A text as token IDs. `targets` are the positions whose next tokens are in the loss; `shown` are some of them."""

    ids: list[int]
    targets: list[int]
    shown: list[int]


def probe_conversations() -> list[Conversation]:
    """Return the public texts: short questions with answers, in Chinese and English."""
    text = (resources.files("lorafit.exporters") / PROBE).read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [[Message("user", row["question"]), Message("assistant", row["answer"])] for row in rows]


def template_conversations() -> list[Conversation]:
    """Return the conversations that a template must write as in the training: also longer ones, thoughts and tools."""
    asked, answered = probe_conversations()[0]
    again, reply = probe_conversations()[-1]
    system = Message("system", "Answer briefly. 请简短回答。")
    thinking = Message("assistant", answered.content, thought="Paris is the capital.\n那么就是它。")
    call, result = Message("assistant", "", calls=CALLS), Message("tool", '{"found": 3}', name="find_statute")
    return [
        *probe_conversations(),
        [system, asked, answered],
        [asked, answered, again, reply],
        [system, asked, answered, again, reply],
        [asked, thinking],
        [asked, thinking, again, reply],
        [Message("tools", TOOLS_TEXT), asked, answered],
        [Message("tools", TOOLS_TEXT), asked, call, result, reply],
    ]


def probe_strings() -> list[str]:
    """Return STRINGS short texts, Chinese, English and mixed, with numbers, signs, white space and emoji."""
    parts = [turn.content for conversation in probe_conversations() for turn in conversation]
    signs = (
        "《民法典》第1165条",
        " ",
        "\n\n",
        "1,234.5%",
        "“引号”…",
        "def f(x):\n\treturn x",
        "🙂👍🏽",
        "é",
        "　",
        "http://a.b/c?d=e",
    )
    rng = np.random.default_rng(7)
    found = []
    for number in range(STRINGS):
        first, second = (parts[place] for place in rng.integers(0, len(parts), 2))
        begin, end = sorted(rng.integers(0, len(first) + 1, 2))
        found.append(f"{first[begin:end]}{signs[number % len(signs)]}{second[: rng.integers(0, len(second) + 1)]}")
    return found


def rows_of(source: ExportSource, say: ProgressCallback) -> dict[str, list[ProbeText]]:
    """Return the texts by their kind: "validation", rows of the run's validation set, where it has any, and "probe"."""
    limit, rows = max(MOST_NUMBERS // source.spec.vocab, ROWS), FEW_ROWS if source.spec.parameters > LARGE else ROWS
    found = {}
    if source.trained is not None:
        try:
            held = load_validation_rows(source.trained, source.base.folder, source.trust_remote_code, say).samples
            found["validation"] = _chosen(list(held.select(np.arange(min(rows, len(held))))), limit)
        except (RunError, DataError, HubError, OSError):  # the data moved or changed, or there are no such rows
            pass
    public = list(_rendered(source))
    step = len(public) // FEW_ROWS if found or rows == FEW_ROWS else 1
    return found | {"probe": _chosen(public[::step], limit)}


def _rendered(source: ExportSource) -> Iterator[Sample]:
    for conversation in probe_conversations():
        try:
            yield render(conversation, source.tokenizer, TOKENS, source.chat.date_string).sample
        except BadRow:  # a template in which no answer is found
            ids, _spans = source.tokenizer.encode_with_offsets("\n".join(turn.content for turn in conversation))
            yield Sample(np.asarray(ids, np.int32), np.arange(len(ids)) > 0)


def _chosen(samples: list[Sample], limit: int) -> list[ProbeText]:
    """Return the rows. `shown` are at most `limit` positions in all, evenly spread over the tokens in the loss."""
    each = max(min(POSITIONS, limit) // max(len(samples), 1), 1)
    rows = []
    for sample in samples:
        targets = np.flatnonzero(sample.target_mask[:TOKENS]) - 1
        if len(targets):
            shown = targets[np.unique(np.linspace(0, len(targets) - 1, each).round().astype(int))]
            rows.append(ProbeText(sample.input_ids[: int(targets[-1]) + 2].tolist(), targets.tolist(), shown.tolist()))
    return rows


def template_ids(tokenizer: ChatTokenizer, date_string: str) -> list[list[int]]:
    """Return the token IDs of template_conversations(), each once whole and once up to its last answer.

    They are empty where the template refuses the conversation.
    """
    return [
        _ids(tokenizer, turns, prompt, date_string)
        for conversation in template_conversations()
        for turns, prompt in ((conversation, False), (conversation[:-1], True))
    ]


def chat_texts(source: ExportSource) -> Iterator[tuple[str, list[int]]]:
    """Yield the texts of conversations and of many short strings in a question, with the token IDs of the training."""
    tokenizer, date = source.tokenizer, source.chat.date_string
    strings = [[Message("user", text)] for text in probe_strings()]
    for turns in (*template_conversations(), *strings):
        try:
            text = tokenizer.render_text(turns, turns[-1].role == "user", date)
        except TemplateRefused:
            continue
        yield text, tokenizer.encode_with_offsets(text)[0]


def _ids(tokenizer: ChatTokenizer, turns: Conversation, prompt: bool, date_string: str) -> list[int]:
    try:
        return tokenizer.encode_with_offsets(tokenizer.render_text(turns, prompt, date_string))[0]
    except TemplateRefused:
        return []
