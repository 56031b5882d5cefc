"""The data report: counts, lengths, rejects, duplicates and a few samples, from one pass over the rows.

The formats, the chat template and the split are those of a training run. near_duplicates.py finds the near-duplicates.
The reporters print the report.
"""

import heapq
import itertools
import random
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lorafit.config import TrainConfig
from lorafit.data import near_duplicates
from lorafit.data.conversation import BadRow, Conversation
from lorafit.data.dataset import PreparedData, content_key, validation_keys
from lorafit.data.findings import (
    DataReport,
    DuplicateStats,
    LengthStats,
    RejectReason,
    RowLocation,
    ShownSample,
    StrangeCharacter,
)
from lorafit.data.formats import ReadRow
from lorafit.data.key_use import KeyUse
from lorafit.data.micro_batch import Sample
from lorafit.data.preprocessing import preprocessing_of
from lorafit.data.readers.row import Row, rows_in
from lorafit.data.render import Rendered, Tokenizer
from lorafit.data.text_checks import excerpt, lacks_answer, strange_characters, visible
from lorafit.data.thoughts import ThoughtUse
from lorafit.hashing import UInt32
from lorafit.messages import _, listed
from lorafit.units import count_text

EXAMPLES = 3
COMPARED = 100_000  # conversations compared for near-duplicates: those with the smallest keys
BINS = 30
ALL_SAMPLES = 1000  # shown on request


class DecodingTokenizer(Tokenizer, Protocol):
    """A tokenizer that also decodes token ids."""

    def decode_with_special(self, ids: Iterable[int]) -> str:
        """Decode `ids`, special tokens included."""
        ...


def make_report(
    rows: Iterable[Row], tokenizer: DecodingTokenizer, config: TrainConfig, all_samples: bool = False
) -> DataReport:
    """Return the report on `rows`, up to max_samples good rows, preprocessed as for a training run with `config`.

    With `all_samples`, the first ALL_SAMPLES samples are in the report, in order.
    """
    seen, recipe = _Seen(config.seed, ALL_SAMPLES if all_samples else 0), preprocessing_of(config)
    for row in rows:
        try:
            content = recipe.read(row.value)
            rendered = recipe.render(content.conversation, tokenizer)
        except BadRow as bad:
            seen.refuse(row, bad.reason)
            continue
        seen.add(row, content, rendered)
        if len(seen.keys) == config.max_samples:
            break
    report = _report(seen, tokenizer, config)
    if all_samples:
        report.samples["all"] = [_shown(kept, tokenizer) for kept in seen.first]
    return report


@dataclass(frozen=True)
class _KeptRows:
    """A candidate for the samples that the report shows."""

    place: RowLocation
    format: str
    rendered: Rendered


class _FirstFew:
    """The EXAMPLES samples with the smallest ranks so far, each with different content."""

    def __init__(self) -> None:
        self.best: list[tuple[float, bytes, _KeptRows]] = []

    def offer(self, rank: float, key: bytes, kept: _KeptRows) -> None:
        if len(self.best) == EXAMPLES and rank >= self.best[-1][0]:
            return
        if all(key != other for _rank, other, _kept in self.best):
            self.best = heapq.nsmallest(EXAMPLES, [*self.best, (rank, key, kept)], key=lambda entry: entry[0])


@dataclass
class _Seen:
    """Results collected during the pass over the rows."""

    seed: int
    keep_first: int = 0  # samples kept in `first`
    first: list[_KeptRows] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    prints: "array[int]" = field(default_factory=lambda: array("q"))  # hash of each sample's tokens
    lengths: "array[int]" = field(default_factory=lambda: array("q"))  # tokens before truncation
    files: dict[str, list[int]] = field(default_factory=dict)
    formats: Counter[str] = field(default_factory=Counter)
    refused: dict[str, RejectReason] = field(default_factory=dict)
    without_answer: int = 0
    targets: int = 0
    cut_rows: int = 0
    cut_tokens: int = 0
    cut_targets: int = 0
    dropped_rows: int = 0
    key_use: KeyUse = field(default_factory=KeyUse)
    thoughts: ThoughtUse = field(default_factory=ThoughtUse)
    strange_rows: int = 0
    strange: dict[str, StrangeCharacter] = field(default_factory=dict)
    compared: dict[bytes, tuple[RowLocation, UInt32]] = field(default_factory=dict)
    highest: bytes = b"\xff" * 32  # larger keys are no longer compared
    few: dict[str, _FirstFew] = field(
        default_factory=lambda: {name: _FirstFew() for name in ("shortest", "longest", "random")}
    )

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def refuse(self, row: Row, reason: str) -> None:
        self._count(row, good=False)
        self.without_answer += lacks_answer(row.value)
        kind = re.sub(r"\d+", "#", reason)
        group = self.refused.setdefault(kind, RejectReason(visible(reason), 0, []))
        examples = group.examples
        if len(examples) < EXAMPLES:
            examples.append((RowLocation(row.file, row.line), excerpt(row.value)))
        self.refused[kind] = RejectReason(group.reason, group.rows + rows_in(row.value), examples)

    def add(self, row: Row, content: ReadRow, rendered: Rendered) -> None:
        conversation, name = content.conversation, content.format
        self.key_use.add([(content.unused, content.pair)])
        self.thoughts.add([rendered.thoughts])
        self.dropped_rows += rendered.dropped
        self.cut_targets += rendered.targets_cut
        place, sample, key = RowLocation(row.file, row.line), rendered.sample, content_key(conversation)
        self._count(row, good=True)
        self.formats[name] += 1
        self.keys.append(key)
        self.prints.append(hash(sample.input_ids.tobytes()))
        self.lengths.append(len(sample) + rendered.tokens_cut)
        self.targets += sample.num_targets
        self.cut_rows += rendered.tokens_cut > 0
        self.cut_tokens += rendered.tokens_cut
        self._look_at_text(place, key, conversation)
        kept = _KeptRows(place, name, rendered)
        if len(self.first) < self.keep_first:
            self.first.append(kept)
        ranks = {"shortest": len(sample), "longest": -self.lengths[-1], "random": self.random.random()}
        for kind, rank in ranks.items():
            self.few[kind].offer(rank, key, kept)

    def _count(self, row: Row, good: bool) -> None:
        counts = self.files.setdefault(row.file, [0, 0])
        counts[0] += rows_in(row.value)
        counts[1] += good

    def _look_at_text(self, place: RowLocation, key: bytes, conversation: Conversation) -> None:
        characters = strange_characters("\n".join(turn.content for turn in conversation))
        self.strange_rows += bool(characters)
        for character in characters:
            code, name = f"U+{ord(character):04X}", unicodedata.name(character, "").lower()
            before = self.strange.get(code) or StrangeCharacter(code, name, 0, place)
            self.strange[code] = StrangeCharacter(code, name, before.rows + 1, before.first)
        if key > self.highest or key in self.compared:
            return
        # System messages are left out: many rows have the same one, which would make the rows similar.
        said = "\n".join(turn.content for turn in conversation if turn.role != "system")
        self.compared[key] = place, near_duplicates.signature(said)
        if len(self.compared) >= COMPARED + COMPARED // 4:
            self.forget()

    def forget(self) -> None:
        """Keep only the COMPARED smallest keys, in the order of the rows."""
        if len(self.compared) > COMPARED:
            self.highest = sorted(self.compared)[COMPARED - 1]
            self.compared = {key: entry for key, entry in self.compared.items() if key <= self.highest}


def _report(seen: _Seen, tokenizer: DecodingTokenizer, config: TrainConfig) -> DataReport:
    chosen = validation_keys(seen.keys, config.val_size)[0] if seen.keys else set()
    sides: dict[bool, Counter[int]] = {True: Counter(), False: Counter()}
    for key, tokens in zip(seen.keys, seen.prints, strict=True):
        sides[key in chosen][tokens] += 1
    kept = {kind: [entry for _rank, _key, entry in few.best] for kind, few in seen.few.items()}
    return DataReport(
        model_name=config.model_name,
        max_length=config.max_length,
        files={name: (read, good) for name, (read, good) in seen.files.items()},
        formats=dict(seen.formats.most_common()),
        reject_reasons=sorted(seen.refused.values(), key=lambda group: -group.rows),
        without_answer=seen.without_answer,
        train=sides[False].total(),
        valid=sides[True].total(),
        leaked_rows=sum(rows for tokens, rows in sides[False].items() if tokens in sides[True]),
        duplicates=_twins(seen, chosen),
        lengths=_lengths(np.array(seen.lengths)) if seen.keys else None,
        total_tokens=sum(seen.lengths) - seen.cut_tokens,
        total_targets=seen.targets,
        cut_rows=seen.cut_rows,
        cut_tokens=seen.cut_tokens,
        cut_targets=seen.cut_targets,
        dropped_rows=seen.dropped_rows,
        key_use=seen.key_use,
        thoughts=seen.thoughts,
        strange_rows=seen.strange_rows,
        strange=sorted(seen.strange.values(), key=lambda found: -found.rows),
        samples={kind: [_shown(entry, tokenizer) for entry in entries] for kind, entries in kept.items()},
    )


def _twins(seen: _Seen, chosen: set[bytes]) -> DuplicateStats:
    seen.forget()
    exact = len(seen.keys) - len(set(seen.keys))
    if not seen.compared:
        return DuplicateStats(exact, 0, 0, 0, [])
    keys, places = list(seen.compared), [place for place, _signature in seen.compared.values()]
    pairs, similar = near_duplicates.near_pairs(np.stack([signature for _place, signature in seen.compared.values()]))
    across = {
        keys[i] for pair in pairs for i in pair if keys[i] in chosen and not chosen.issuperset(keys[j] for j in pair)
    }
    best = np.argsort(-similar, kind="stable")[:EXAMPLES]
    examples = [(places[pairs[i, 0]], places[pairs[i, 1]], float(similar[i])) for i in best]
    return DuplicateStats(exact, len(keys), len(set(pairs[:, 1].tolist())), len(across), examples)


def _lengths(lengths: NDArray[np.int64]) -> LengthStats:
    """Return the length statistics.

    The bins have a round width and extend to the 99th percentile; the last bin extends to the longest sample.
    """
    reach = max(float(np.percentile(lengths, 99)) / BINS, 1)
    power = 10 ** int(np.log10(reach))
    width = next(step * power for step in (1, 2, 5, 10) if step * power >= reach)
    edges = [width * i for i in range(int(np.percentile(lengths, 99)) // width + 1)]
    rows = np.bincount(np.minimum(lengths // width, len(edges) - 1), minlength=len(edges))
    return LengthStats(
        shortest=int(lengths.min()),
        median=float(np.median(lengths)),
        ninth_decile=float(np.percentile(lengths, 90)),
        longest=int(lengths.max()),
        edges=edges,
        rows=rows.tolist(),
    )


def _shown(kept: _KeptRows, tokenizer: DecodingTokenizer) -> ShownSample:
    sample = kept.rendered.sample
    pieces = target_pieces(sample, tokenizer)
    return ShownSample(kept.place, kept.format, len(sample), sample.num_targets, kept.rendered.tokens_cut, pieces)


def target_pieces(sample: Sample, tokenizer: DecodingTokenizer) -> list[tuple[str, bool]]:
    """Return the sample's text in pieces, each with whether its tokens are targets."""
    borders = [0, *(np.flatnonzero(np.diff(sample.target_mask)) + 1).tolist(), len(sample)]
    spans = itertools.pairwise(borders)
    return [
        (visible(tokenizer.decode_with_special(sample.input_ids[a:b].tolist())), bool(sample.target_mask[a]))
        for a, b in spans
    ]


def summary_lines(prepared: PreparedData) -> list[str]:
    """Return the report in two lines, for the start of a training run, without near-duplicates.

    The notes of `prepared` give the details of truncation.
    """
    formats = listed(f"{name} {count_text(rows)}" for name, rows in prepared.formats.items())
    rows, rejects = count_text(prepared.rows + prepared.rejects.rows), count_text(prepared.rejects.rows)
    text = _("✓ data: {rows} rows ({formats}); exact duplicates: {copies}, rejected: {rejects}")
    data = text.format(rows=rows, formats=formats, copies=count_text(prepared.copies), rejects=rejects)
    share, cut = prepared.total_targets / max(prepared.total_tokens, 1), count_text(prepared.truncated_rows)
    text = _("✓ tokens: {tokens}, {share:.0%} of them in the loss; truncated rows: {cut}")
    return [data, text.format(tokens=count_text(prepared.total_tokens), share=share, cut=cut)]
