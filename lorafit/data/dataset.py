"""Training and validation data: two sample stores, with counts and notes on the rows that are left out.

The samples come from the cache (cache.py), which builds them if necessary. This module assigns them to the two sets.
"""

import hashlib
import tempfile
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lorafit.config import TrainConfig
from lorafit.data.cache import (
    CacheEntry,
    entry_key,
    file_sha256,
    find_cache_entry,
    find_or_build,
    open_entry,
    tokenizer_digest,
    write_entry,
)
from lorafit.data.conversation import Conversation
from lorafit.data.hub_data import HubPart, Subset
from lorafit.data.micro_batch import Bool
from lorafit.data.preprocessing import Preprocessing, preprocessing_of
from lorafit.data.readers.registry import Row
from lorafit.data.rejects import Reject, RejectFile, check_rejects, write_rejects
from lorafit.data.render import Tokenizer
from lorafit.data.sources import Source, open_source
from lorafit.data.split import content_key, key_bytes, validation_keys, validation_mask
from lorafit.data.store import SampleStore, read_places
from lorafit.data.thoughts import ThoughtUse
from lorafit.data.tokenize import LoadTokenizer
from lorafit.errors import DataError
from lorafit.hashing import fold
from lorafit.messages import _, labelled
from lorafit.progress import exhaust
from lorafit.units import count_text

__all__ = ["PreparedData", "Reject", "content_key", "prepare", "prepare_cached", "validation_keys", "write_rejects"]

T = TypeVar("T")
PROBES = 4  # tokens per fingerprint, evenly spaced from the first to the last
BLOCK = 1 << 16  # rows whose fingerprints are computed at once


@dataclass(frozen=True)
class DataFile:
    """A data file that `setting` names, by its absolute path; or the split of a hub's data set, by its name.

    `rows` are the rows that became samples. `content` identifies the content.
    """

    setting: str
    file: str
    rows: int
    content: str


@dataclass(frozen=True)
class PreparedData:
    """The data of a run.

    `valid_conversations` holds one conversation per group of equal validation rows, as far as the cache stores them.
    `notes` are messages for the user.
    """

    train: SampleStore
    valid: SampleStore
    valid_conversations: list[Conversation]
    rejects: RejectFile
    formats: dict[str, int]  # number of rows per format
    copies: int  # rows that repeat an earlier row
    truncated_rows: int
    truncated_tokens: int
    total_tokens: int
    total_targets: int
    digest: str
    notes: list[str]
    thoughts: ThoughtUse = field(default_factory=ThoughtUse)
    files: list[DataFile] = field(default_factory=list)  # empty without the cache

    @property
    def rows(self) -> int:
        """Rows that became samples."""
        return len(self.train) + len(self.valid)


@dataclass(frozen=True)
class DataSources:
    """The data that the settings name. `valid_source` is None if validation rows are taken from `source`."""

    source: Source
    valid_source: Source | None
    recipe: Preprocessing
    tokenizer_digest: str
    max_samples: int | None

    @property
    def key(self) -> str:
        return entry_key(self.source, self.recipe, self.tokenizer_digest, self.max_samples)

    @property
    def valid_key(self) -> str | None:
        if self.valid_source is None:
            return None
        return entry_key(self.valid_source, self.recipe, self.tokenizer_digest, None)


def resolve_sources(config: TrainConfig, model_folder: Path, template: str | None = None) -> DataSources:
    """Resolve the data that `config` names, before any row is read. Raises ConfigError, DataError or HubError."""
    recipe, digest = preprocessing_of(config), tokenizer_digest(model_folder, template)
    open_data = partial(open_source, hub=config.hub, endpoint=config.hf_endpoint, encoding=config.encoding)
    source = open_data(config.dataset_name, config.dataset_split, subset=Subset(config.dataset_subset))
    valid = None
    if config.valid_dataset is not None:
        subset = Subset(config.valid_subset, "valid_subset")
        valid = open_data(config.valid_dataset, config.valid_split, subset=subset)
    return DataSources(source, valid, recipe, digest, config.max_samples)


def prepare_cached(
    config: TrainConfig, model_folder: Path, load: LoadTokenizer, template: str | None = None
) -> Generator[str, None, PreparedData]:
    """Return the data that `config` names; yield progress messages.

    `load` is called only if the cache lacks some of the data. Raises ConfigError, DataError, HubError or DiskError.
    """
    wanted = resolve_sources(config, model_folder, template)
    entry = yield from find_or_build(wanted.key, wanted.source, wanted.recipe, load, wanted.max_samples)
    valid = None
    if wanted.valid_source is not None and wanted.valid_key is not None:
        valid = yield from find_or_build(wanted.valid_key, wanted.valid_source, wanted.recipe, load, None)
    return replace(split_train_valid(entry, valid, config), files=[*_files(wanted, entry, valid)])


def _files(wanted: DataSources, entry: CacheEntry, valid: CacheEntry | None) -> Iterator[DataFile]:
    pairs = (("dataset_name", wanted.source, entry), ("valid_dataset", wanted.valid_source, valid))
    for setting, source, cached in pairs:
        if source is None or cached is None:
            continue
        rows = np.bincount(cached.files, minlength=len(cached.file_names)).tolist()
        for part in dict(zip(source.files, source.parts, strict=True)).values():
            file = part.file if isinstance(part, HubPart) else str(Path(part.file).absolute())
            yield DataFile(setting, file, rows[cached.file_names.index(part.file)], part.content(file_sha256))


def load_cached(config: TrainConfig, model_folder: Path, template: str | None = None) -> PreparedData | None:
    """Return the data that `config` names if the cache has all of it, else None.

    No row is read and no tokenizer is imported: a plan uses this function before a run. Raises ConfigError, DataError
    or HubError.
    """
    wanted = resolve_sources(config, model_folder, template)
    entry, valid = find_cache_entry(wanted.key, wanted.source.files), None
    if wanted.valid_source is not None and wanted.valid_key is not None:
        valid = find_cache_entry(wanted.valid_key, wanted.valid_source.files)
        if valid is None:
            return None
    return None if entry is None else split_train_valid(entry, valid, config)


def prepare(
    rows: Iterable[Row], tokenizer: Tokenizer, config: TrainConfig, valid_rows: Iterable[Row] | None = None
) -> PreparedData:
    """Return the data of `rows`, without the cache. Raises ConfigError or DataError.

    The samples are in temporary folders. Each folder is deleted when the object that refers to it is garbage-collected.
    """

    def made(rows: Iterable[Row], most: int | None) -> CacheEntry:
        folder = tempfile.TemporaryDirectory(prefix="lorafit-", ignore_cleanup_errors=True)
        exhaust(write_entry(Path(folder.name), rows, preprocessing_of(config), lambda: tokenizer, most))
        entry = open_entry(Path(folder.name))
        return replace(entry, rejects=replace(entry.rejects, folder=folder))

    return split_train_valid(
        made(rows, config.max_samples), None if valid_rows is None else made(valid_rows, None), config
    )


def split_train_valid(entry: CacheEntry, valid: CacheEntry | None, config: TrainConfig) -> PreparedData:
    """Divide the rows into training and validation rows; no conversation is in both.

    `valid` holds the validation rows; if it is None, they are taken from `entry`. Raises DataError if too many rows are
    bad or no training row is left.
    """
    check_rejects(entry.rejects, len(entry.samples), config.max_rejects)
    if valid is None:
        held_out_N, notes = validation_mask(entry.keys, config.val_size)
        samples = entry.samples.select(np.flatnonzero(held_out_N))
        conversations = entry.conversations(key_bytes(entry.keys[held_out_N]))
        twins_N = _same_tokens(entry, held_out_N)
        kept_N = ~held_out_N & ~twins_N
        notes += _twins_note(int(twins_N.sum()))
        if not kept_N.any():
            what = _("No training rows left: with max_length {n}, all have the same tokens as validation rows.")
            raise DataError(what.format(n=config.max_length), fix=_("Use a larger --max_length, or --val_size 0."))
    else:
        check_rejects(valid.rejects, len(valid.samples), config.max_rejects)
        kept_N, notes = _without_copies(entry, valid)
        samples, conversations = valid.samples, valid.conversations()
    digest = hashlib.sha256((entry.content + (valid.content if valid else "")).encode() + kept_N.tobytes())
    cut_N = entry.whole_lengths > entry.samples.lengths
    return PreparedData(
        train=entry.samples.select(np.flatnonzero(kept_N)),
        valid=samples,
        valid_conversations=conversations,
        rejects=entry.rejects,
        formats=entry.formats,
        copies=entry.copies,
        truncated_rows=int(cut_N.sum()),
        truncated_tokens=int(entry.whole_lengths.sum(dtype=np.int64)) - len(entry.samples.input_ids),
        total_tokens=len(entry.samples.input_ids),
        total_targets=entry.num_targets,
        digest=digest.hexdigest(),
        notes=[*_reading_notes(entry, valid), *notes, *_notes(entry, config)],
        thoughts=entry.thoughts,
    )


def _same_tokens(entry: CacheEntry, held_out_N: Bool) -> Bool:
    """Return a mask [N] of the training rows that have the same tokens as a validation row.

    Their conversations differ only in text that truncation removed, or that the template does not write.
    """
    samples, lengths = entry.samples, entry.samples.lengths
    seen = {samples[int(row)].input_ids.tobytes() for row in np.flatnonzero(held_out_N)}
    maybe = np.flatnonzero(~held_out_N & np.isin(lengths, lengths[held_out_N]))
    alike = np.isin(_fingerprints(samples, maybe), _fingerprints(samples, np.flatnonzero(held_out_N)))
    twins_N = np.zeros(len(lengths), np.bool_)
    for row in maybe[alike]:
        twins_N[row] = samples[int(row)].input_ids.tobytes() in seen
    return twins_N


def _fingerprints(samples: SampleStore, rows: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return the fingerprints [N] of `rows`: equal samples have equal fingerprints.

    Only PROBES tokens of each sample are read, so that a million rows take little time.
    """
    found = np.empty(len(rows), np.uint32)
    for first in range(0, len(rows), BLOCK):
        part = rows[first : first + BLOCK]
        starts_N, lengths_N = samples.starts[part], samples.lengths[part].astype(np.int64)
        places_NP = starts_N[:, None] + (lengths_N[:, None] - 1) * np.arange(PROBES) // (PROBES - 1)
        found[first : first + BLOCK] = fold(lengths_N, *read_places(samples.input_ids, places_NP).T)
    return found


def _twins_note(rows: int) -> list[str]:
    text = _("Rows with the same tokens as a validation row, not used for training: {n}.")
    return [text.format(n=count_text(rows))] if rows else []


def _without_copies(entry: CacheEntry, valid: CacheEntry) -> tuple[Bool, list[str]]:
    """Return a mask [N] of the training rows that are not in the validation data, and a note on the others.

    Raises DataError if all training rows are in the validation data.
    """
    kept_N = ~np.isin(entry.keys, valid.keys)
    left_out = len(kept_N) - int(kept_N.sum())
    if left_out == len(kept_N):
        fix = _(
            "Use other data for --valid_dataset, or remove the flag: the validation set is then "
            "split off from the training data."
        )
        raise DataError(_("All training rows are also in the validation data."), where="valid_dataset", fix=fix)
    text = _("Training rows that are also in the validation data, not used for training: {n}.")
    return kept_N, [text.format(n=count_text(left_out))] if left_out else []


def _reading_notes(*entries: CacheEntry | None) -> list[str]:
    found = [note for entry in entries if entry is not None for note in entry.reading_notes]
    return [labelled(file, text) for file, text in dict.fromkeys(found)]


def _notes(entry: CacheEntry, config: TrainConfig) -> Iterator[str]:
    yield from entry.key_use.notes()
    if entry.dropped_rows:
        text = _("Rows of which the chat template leaves out a part (e.g. earlier reasoning): {n}.")
        yield text.format(n=count_text(entry.dropped_rows))
    yield from entry.thoughts.notes()
    yield from _truncation_note(entry, config)


def _truncation_note(entry: CacheEntry, config: TrainConfig) -> Iterator[str]:
    """Yield a note on the truncated tokens, and on the max_length that truncates none and its cost in tokens."""
    lengths, whole = entry.samples.lengths, entry.whole_lengths
    cut_rows, kept = int((whole > lengths).sum()), len(entry.samples.input_ids)
    if not cut_rows:
        return
    cut, targets = int(whole.sum(dtype=np.int64)) - kept, int(entry.targets_cut.sum(dtype=np.int64))
    text = _(
        "Rows longer than max_length {n}: {rows} of {all}. Tokens removed: {tokens}, of "
        "which {targets} in the loss. --max_length {longest} removes none, for {more} more "
        "tokens."
    )
    yield text.format(
        rows=count_text(cut_rows),
        all=count_text(len(lengths)),
        n=config.max_length,
        tokens=count_text(cut),
        targets=count_text(targets),
        longest=int(whole.max()),
        more=f"{cut / kept:.{0 if cut > kept / 10 else 1}%}",
    )
