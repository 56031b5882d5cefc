"""Tokenization of rows into arrays: in batches, on all cores, in the order of the rows.

At first one process does the work, with the tokenizer's own threads. Worker processes start after PATIENCE_SECONDS,
because each takes seconds to import the tokenizer. The result does not depend on the number of processes.
"""

import itertools
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from lorafit.data.conversation import BadRow
from lorafit.data.formats import FORMATS, ReadRow
from lorafit.data.key_use import RowKeys
from lorafit.data.micro_batch import Bool, Int32
from lorafit.data.preprocessing import Preprocessing
from lorafit.data.readers.row import Row
from lorafit.data.render import Rendered, TemplatedText, Tokenizer, to_sample
from lorafit.data.split import content_key
from lorafit.data.thoughts import RowThoughts

BATCH = 256  # rows per batch
PATIENCE_SECONDS = 10.0  # of work in one process before worker processes start
FORMAT_NAMES = tuple(FORMATS)
LoadTokenizer = Callable[[], Tokenizer]


@dataclass
class TokenizedRows:
    """The result for a batch of rows: arrays over the N good rows and over their T tokens."""

    input_ids: Int32
    target_mask: Bool
    lengths: Int32
    whole_lengths: Int32  # tokens before truncation
    targets_cut: Int32  # targets that truncation removed
    dropped: Bool  # whether the chat template omits some text
    formats: NDArray[np.uint8]  # indices into FORMAT_NAMES
    row_indices: Int32  # indices of the good rows in the batch
    keys: bytes  # 32 bytes per good row (`content_key`)
    key_use: list[RowKeys]  # of the good rows
    thoughts: list[RowThoughts | None]  # of the good rows
    rejects: list[tuple[int, str]] = field(default_factory=list)  # index and reason of each bad row

    def first(self, count: int) -> "TokenizedRows":
        """Return the result for the rows up to the good row number `count`, included."""
        if count >= len(self.lengths):
            return self
        tokens, last = int(self.lengths[:count].sum()), int(self.row_indices[count - 1]) if count else -1
        return TokenizedRows(
            input_ids=self.input_ids[:tokens],
            target_mask=self.target_mask[:tokens],
            lengths=self.lengths[:count],
            whole_lengths=self.whole_lengths[:count],
            targets_cut=self.targets_cut[:count],
            dropped=self.dropped[:count],
            formats=self.formats[:count],
            row_indices=self.row_indices[:count],
            keys=self.keys[: 32 * count],
            key_use=self.key_use[:count],
            thoughts=self.thoughts[:count],
            rejects=[(place, reason) for place, reason in self.rejects if place < last],
        )


def tokenize_rows(rows: list[Row], recipe: Preprocessing, tokenizer: Tokenizer) -> TokenizedRows:
    """Tokenize a batch: return the samples of the good rows and the reasons for the bad rows."""
    rejects: list[tuple[int, str]] = []
    read: list[tuple[int, ReadRow, TemplatedText]] = []
    for place, row in enumerate(rows):
        try:
            content = recipe.read(row.value)
            read.append((place, content, recipe.apply_template_to(content.conversation, tokenizer)))
        except BadRow as bad:
            rejects.append((place, bad.reason))
    made: list[tuple[int, ReadRow, Rendered]] = []
    encoded = tokenizer.encode_many([spelled.text for _place, _content, spelled in read])
    for (place, content, spelled), (ids, offsets) in zip(read, encoded, strict=True):
        try:
            made.append((place, content, to_sample(spelled, ids, offsets, recipe.max_length)))
        except BadRow as bad:
            rejects.append((place, bad.reason))
    return _joined(made, sorted(rejects))


def _joined(made: list[tuple[int, ReadRow, Rendered]], rejects: list[tuple[int, str]]) -> TokenizedRows:
    rendered = [one for _place, _content, one in made]
    return TokenizedRows(
        input_ids=np.concatenate([np.empty(0, np.int32), *(one.sample.input_ids for one in rendered)]),
        target_mask=np.concatenate([np.empty(0, np.bool_), *(one.sample.target_mask for one in rendered)]),
        lengths=np.array([len(one.sample) for one in rendered], np.int32),
        whole_lengths=np.array([len(one.sample) + one.tokens_cut for one in rendered], np.int32),
        targets_cut=np.array([one.targets_cut for one in rendered], np.int32),
        dropped=np.array([one.dropped for one in rendered], np.bool_),
        formats=np.array([FORMAT_NAMES.index(content.format) for _place, content, _one in made], np.uint8),
        row_indices=np.array([place for place, _content, _one in made], np.int32),
        keys=b"".join(content_key(content.conversation) for _place, content, _one in made),
        key_use=[(content.unused, content.pair) for _place, content, _one in made],
        thoughts=[one.thoughts for one in rendered],
        rejects=rejects,
    )


def tokenize_all(
    rows: Iterable[Row],
    recipe: Preprocessing,
    load: LoadTokenizer,
    cores: int | None = None,
    patience: float = PATIENCE_SECONDS,
) -> Iterator[tuple[list[Row], TokenizedRows]]:
    """Yield the rows in batches, each with its result, in order.

    Worker processes start after `patience` seconds, one per core (`cores` None: all usable cores).
    """
    shares = _shares(rows)
    started, tokenizer = time.monotonic(), load()
    cores = cores or usable_cores()
    for share in shares:
        yield share, tokenize_rows(share, recipe, tokenizer)
        if cores > 1 and time.monotonic() - started > patience:
            break
    with _Workers(recipe, load, cores) as workers:
        for share in shares:
            workers.send(share)
            if workers.full:
                yield workers.receive(tokenizer)
        while workers.waiting:
            yield workers.receive(tokenizer)


def _shares(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while share := list(itertools.islice(iterator, BATCH)):
        yield share


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class _Workers:
    """Worker processes that tokenize batches. After a worker dies, the main process computes the missing results."""

    def __init__(self, recipe: Preprocessing, load: LoadTokenizer, cores: int) -> None:
        self.recipe, self.most = recipe, 2 * cores
        self.pool = ProcessPoolExecutor(cores, get_context("spawn"), _begin, (recipe, load))
        self.waiting: deque[tuple[list[Row], Future[TokenizedRows] | None]] = deque()
        self.broken = False

    @property
    def full(self) -> bool:
        return len(self.waiting) >= self.most

    def send(self, share: list[Row]) -> None:
        try:
            with _no_main():
                self.waiting.append((share, None if self.broken else self.pool.submit(_make_there, share)))
        except BrokenExecutor:
            self.broken = True
            self.waiting.append((share, None))

    def receive(self, tokenizer: Tokenizer) -> tuple[list[Row], TokenizedRows]:
        share, future = self.waiting.popleft()
        if future is not None and not self.broken:
            try:
                return share, future.result()
            except BrokenExecutor:  # usually out of memory
                self.broken = True
        return share, tokenize_rows(share, self.recipe, tokenizer)

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_error: object) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _no_main() -> Iterator[None]:
    """Hide the user's script, so that new processes do not import it.

    The import would run a script without a `__main__` guard once more.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


_there: list[tuple[Preprocessing, Tokenizer]] = []  # in a worker process: its initial arguments


def _begin(recipe: Preprocessing, load: LoadTokenizer) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread per worker: more would compete for the cores
    os.environ["RAYON_NUM_THREADS"] = "1"
    _there.append((recipe, load()))


def _make_there(share: list[Row]) -> TokenizedRows:
    recipe, tokenizer = _there[0]
    return tokenize_rows(share, recipe, tokenizer)
