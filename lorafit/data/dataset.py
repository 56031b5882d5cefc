"""What is trained on and what is held out? Rows become two stores of samples; what is left out is counted and named."""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from lorafit.config import TrainConfig
from lorafit.data.formats import BadRow, Conversation, recognise
from lorafit.data.readers import Row
from lorafit.data.render import Rendered, Tokenizer, render
from lorafit.data.store import SampleStore, digest
from lorafit.errors import DataError
from lorafit.messages import _

MAX_REJECTS = 0.05  # share of the rows
MAX_VALID_ROWS = 200  # where val_size is a share: enough for a steady mean, and evaluated in little time


@dataclass(frozen=True)
class Reject:
    """A row that is not learned from, where it stands, and why."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class Prepared:
    """The data of a run. `valid_conversations` are the held-out groups, one of each; `notes` are words for the user."""

    train: SampleStore
    valid: SampleStore
    valid_conversations: list[Conversation]
    rejects: list[Reject]
    formats: dict[str, int]  # rows of each
    truncated_rows: int
    truncated_tokens: int
    total_tokens: int
    total_targets: int
    digest: str
    notes: list[str]

    @property
    def rows(self) -> int:
        """Rows that became samples."""
        return len(self.train) + len(self.valid)


@dataclass
class _Collector:
    """Samples, rejects and counts while the rows go by."""

    held_out_at_most: int
    input_ids: "array[int]" = field(default_factory=lambda: array("i"))
    target_mask: bytearray = field(default_factory=bytearray)
    lengths: "array[int]" = field(default_factory=lambda: array("i"))
    keys: list[bytes] = field(default_factory=list)  # sha256 of each sample's conversation
    conversations: dict[bytes, Conversation] = field(
        default_factory=dict
    )  # of the smallest keys, for the held-out ones
    rejects: list[Reject] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    truncated_rows: int = 0
    truncated_tokens: int = 0

    def add(self, name: str, conversation: Conversation, rendered: Rendered) -> None:
        sample = rendered.sample
        self.input_ids.frombytes(sample.input_ids.tobytes())
        self.target_mask += sample.target_mask.tobytes()
        self.lengths.append(len(sample))
        self.formats[name] += 1
        self.truncated_rows += rendered.tokens_cut > 0
        self.truncated_tokens += rendered.tokens_cut
        key = content_key(conversation)
        self.keys.append(key)
        self.conversations[key] = conversation
        if len(self.conversations) > 2 * self.held_out_at_most:
            self.conversations = dict(sorted(self.conversations.items())[: self.held_out_at_most])

    def store(self) -> SampleStore:
        lengths = np.array(self.lengths, np.int32)
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        ids, mask = np.frombuffer(self.input_ids, np.int32), np.frombuffer(self.target_mask, np.bool_)
        return SampleStore(ids, mask, starts, lengths)


def prepare(rows: Iterable[Row], tokenizer: Tokenizer, config: TrainConfig) -> Prepared:
    """Samples from `rows` (the first max_samples good ones), some held out. Raises DataError when too many are bad."""
    share = config.val_size < 1
    data = _Collector(held_out_at_most=MAX_VALID_ROWS if share else int(config.val_size))
    for row in rows:
        try:
            name, conversation = recognise(row.value)
            rendered = render(conversation, tokenizer, config.max_length, config.date_string, config.system_prompt)
        except BadRow as bad:
            data.rejects.append(Reject(row.file, row.line, bad.reason))
            continue
        data.add(name, conversation, rendered)
        if len(data.keys) == config.max_samples:
            break
    check_rejects(data.rejects, len(data.keys))
    return _split(data, config)


def content_key(conversation: Conversation) -> bytes:
    """sha256 of what is said by whom: equal for rows that must not stand on both sides of a split."""
    turns = [(turn.role, turn.content) for turn in conversation]
    return hashlib.sha256(json.dumps(turns, ensure_ascii=False).encode()).digest()


def check_rejects(rejects: list[Reject], good_rows: int) -> None:
    """Raise DataError when no row is good or more than MAX_REJECTS are bad."""
    if good_rows and len(rejects) <= MAX_REJECTS * (good_rows + len(rejects)):
        return
    raise DataError(
        _("{bad} of {all} rows cannot be learned from.").format(bad=len(rejects), all=good_rows + len(rejects)),
        where=rejects[0].file if rejects else None,
        found="\n".join(f"{reject.file}:{reject.line}: {reject.reason}" for reject in rejects[:3]) or None,
        fix=_(
            "Mend or remove such rows (a larger --max_length, if they are too long); up to {share:.0%} may be bad."
        ).format(share=MAX_REJECTS),
    )


def held_out(keys: list[bytes], val_size: float) -> tuple[set[bytes], list[str]]:
    """Keys of the content groups to hold out, smallest first, so that the rows' order does not matter; and notes.

    At least one group is held out (unless val_size is 0), and one is left.
    """
    if val_size == 0:
        return set(), []
    groups = sorted(Counter(keys).items())
    if len(groups) == 1:
        return set(), [_("All rows are the same conversation: nothing is held out for validation.")]
    wanted = min(MAX_VALID_ROWS, round(val_size * len(keys))) if val_size < 1 else int(val_size)
    notes = []
    if val_size >= 1 and wanted > len(keys) // 2:
        wanted = len(keys) // 2
        notes.append(_("Half of the rows, {n}, are held out: val_size asks for more.").format(n=wanted))
    chosen: set[bytes] = set()
    reached = 0
    for key, rows in groups[:-1]:
        chosen.add(key)
        reached += rows
        if reached >= wanted:
            break
    return chosen, notes


def _split(data: _Collector, config: TrainConfig) -> Prepared:
    chosen, notes = held_out(data.keys, config.val_size)
    is_held_out = np.array([key in chosen for key in data.keys])
    everything = data.store()
    train = everything.select(np.flatnonzero(~is_held_out))
    valid = everything.select(np.flatnonzero(is_held_out))
    return Prepared(
        train=train,
        valid=valid,
        valid_conversations=[data.conversations[key] for key in sorted(chosen)],
        rejects=data.rejects,
        formats=dict(data.formats),
        truncated_rows=data.truncated_rows,
        truncated_tokens=data.truncated_tokens,
        total_tokens=len(everything.input_ids),
        total_targets=int(everything.target_mask.sum()),
        digest=digest(train, valid),
        notes=notes + _truncation_note(data, config),
    )


def _truncation_note(data: _Collector, config: TrainConfig) -> list[str]:
    if not data.truncated_rows:
        return []
    text = _("{rows} rows are longer than max_length {n}: {tokens} tokens are cut off.")
    return [text.format(rows=data.truncated_rows, n=config.max_length, tokens=data.truncated_tokens)]


def write_rejects(path: Path, rejects: list[Reject]) -> None:
    """Write `rejects` as JSON lines."""
    lines = (json.dumps(asdict(reject), ensure_ascii=False) + "\n" for reject in rejects)
    path.write_text("".join(lines), "utf-8")
