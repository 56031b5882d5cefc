"""The task of the race: a base model, legal rows as token ids, and the steps that every contestant takes with them.

Rows are of two kinds. `legal` is text truncated so that the demo model's tokenizer gives as many tokens as Llama-3's
would (about 0.65 per Chinese character). `uncut` is the full text. A system prompt can stand before every row.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorafit.config import TrainConfig
from lorafit.data.dataset import prepare
from lorafit.data.readers.row import Row
from lorafit.data.store import SampleStore
from lorafit.engines.tokenizer import ChatTokenizer, load_tokenizer
from lorafit.models.demo import data_path, demo_model
from lorafit.models.spec import ModelSpec

LAWYER_LLAMA = Path(__file__).parents[3] / "shared" / "data" / "lawyer_llama" / "lawyer_llama_data.json"
SOURCES = ("legal_advice", "judical_examination")
LLAMA3_TOKENS_PER_CHARACTER = 0.65  # of Chinese text; SmolLM2's tokenizer needs 1.4
LENGTHS = {"legal": 512, "uncut": 1024}  # max_length
SEED = 0


@dataclass(frozen=True)
class Rows:
    """Samples, and the numbers of the samples of each step. `max_length` is the length that a naive script pads to."""

    samples: SampleStore
    steps: list[list[int]]
    max_length: int
    source: str

    def tokens(self, step: int) -> tuple[int, int]:
        """Return the tokens and target tokens of `step` (from 0), without padding."""
        taken = [self.samples[i] for i in self.steps[step]]
        return sum(len(sample) for sample in taken), sum(sample.num_targets for sample in taken)

    def save(self, path: Path) -> None:
        """Write the samples as the contestants read them (peers/protocol.py)."""
        taken = list(self.samples)
        ids = np.concatenate([sample.input_ids for sample in taken])
        targets = np.concatenate([sample.target_mask for sample in taken])
        np.savez(path, ids=ids, targets=targets, ends=np.cumsum([len(sample) for sample in taken]))


def make_rows(kind: str, system_tokens: int, steps: int, batch: int, data: Path | None) -> Rows:
    """Return `steps` x `batch` different rows, the same on every call.

    Raise SystemExit if the data has too few rows.
    """
    tokenizer = load_tokenizer(demo_model())
    path = data or (LAWYER_LLAMA if LAWYER_LLAMA.is_file() else data_path())
    texts = list(_texts(path))
    random.Random(SEED).shuffle(texts)
    ratio = LLAMA3_TOKENS_PER_CHARACTER if kind == "legal" else None
    rows = [
        Row({"instruction": _cut(ask, ratio, tokenizer), "output": _cut(answer, ratio, tokenizer)}, str(path), line)
        for line, (ask, answer) in enumerate(texts[: steps * batch * 11 // 10], 1)  # some are rejected or equal
    ]
    max_length = LENGTHS[kind] + (LENGTHS["legal"] if system_tokens else 0)
    config = TrainConfig(max_length=max_length, val_size=0, max_rejects=0.1)
    if system_tokens:
        whole = "\n".join(answer for _ask, answer in texts[-20:])
        config.system_prompt = _first_tokens(whole, system_tokens, tokenizer)
    samples = prepare(rows, tokenizer, config).train
    if len(samples) < steps * batch:
        raise SystemExit(f"{path}: {len(samples)} rows; {steps} steps of {batch} need more")
    order = [list(range(step * batch, (step + 1) * batch)) for step in range(steps)]
    return Rows(samples.select(np.arange(steps * batch)), order, max_length, path.name)


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    text = path.read_text("utf-8")
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    for row in rows:
        if row.get("source", SOURCES[0]) in SOURCES:
            yield row["instruction"], row["output"]


def _cut(text: str, ratio: float | None, tokenizer: ChatTokenizer) -> str:
    return text if ratio is None else _first_tokens(text, max(int(len(text) * ratio), 1), tokenizer)


def _first_tokens(text: str, count: int, tokenizer: ChatTokenizer) -> str:
    """Return the part of `text` that its first `count` tokens cover."""
    ids, offsets = tokenizer.encode_with_offsets(text)
    return text if len(ids) <= count else text[: max(offsets[count][0], 1)]


def step_flops(spec: ModelSpec, rows: Rows, step: int, lora_r: int) -> float:
    """Return the least number of floating-point operations of a step, which the roofline is based on.

    Base linears count 4 per parameter and token: forward, and gradient of the input. The head counts the same at
    targets only. LoRA counts 6, because it has weight gradients too. Causal attention counts 4 forward and 8 backward
    per unit of head width and pair of tokens.
    """
    taken = [rows.samples[i] for i in rows.steps[step]]
    tokens, targets = rows.tokens(step)
    linears = sum(linear.in_features * linear.out_features for linear in spec.linears)
    lora = sum(lora_r * (linear.in_features + linear.out_features) for linear in spec.linears)
    pairs = sum(len(sample) * (len(sample) + 1) / 2 for sample in taken)
    attention = 12 * spec.layers * spec.heads * spec.head_dim * pairs
    return tokens * (4 * linears + 6 * lora) + targets * 4 * spec.hidden * spec.vocab + attention
