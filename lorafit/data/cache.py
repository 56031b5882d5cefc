"""Disk cache of tokenized samples: one folder per combination of data, tokenizer and settings, complete or absent.

The folder's name is a digest of the files' content, the slice, the tokenizer's files, the chat template, the settings
and the versions of lorafit, transformers and tokenizers. No tokenizer is imported to compute the name. Two processes
may build the same folder: the first to finish wins. Folders that were not opened for 30 days are deleted.
"""

import atexit
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafit import __version__
from lorafit.atomic import MANIFEST, atomic_folder, ensure_writable
from lorafit.data.conversation import Conversation, Message
from lorafit.data.key_use import KeyUse
from lorafit.data.micro_batch import Int32
from lorafit.data.preprocessing import Preprocessing
from lorafit.data.readers.row import Row, rows_in
from lorafit.data.rejects import Reject, RejectFile
from lorafit.data.sources import Source
from lorafit.data.split import KEY, MAX_VALID_ROWS, Keys, as_keys
from lorafit.data.store import NpyWriter, SampleStore, open_mapped
from lorafit.data.thoughts import ThoughtUse
from lorafit.data.tokenize import FORMAT_NAMES, LoadTokenizer, TokenizedRows, tokenize_all
from lorafit.errors import DiskError
from lorafit.messages import _, recipe_of, retranslate
from lorafit.paths import cache_folder, user_path
from lorafit.units import count_text

LAYOUT = 3  # version of the folder's layout; a change invalidates all older folders
COLUMNS: dict[str, Any] = {
    "input_ids": np.int32, "target_mask": np.bool_,  # one value per token; below: one value per row
    "lengths": np.int32, "whole_lengths": np.int32, "targets_cut": np.int32, "dropped": np.bool_, "formats": np.uint8,
    "keys": KEY, "files": np.int32, "lines": np.int64,
}  # fmt: skip
TRAINING_COLUMNS = ("lengths", "input_ids", "target_mask")  # the columns that training uses
TOKENIZER_FILES = ("tokenizer*", "*.jinja", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
                   "*.model", "*.tiktoken", "config.json")  # fmt: skip
REPORT_SECONDS = 2.0
UNUSED_SECONDS = 30 * 86400.0


@dataclass(frozen=True)
class CacheEntry:
    """Cached samples on disk, in the order of the rows. Arrays have shape [N] (good rows) and are memory-mapped."""

    folder: Path
    samples: SampleStore
    whole_lengths: Int32  # tokens before truncation
    targets_cut: Int32  # targets that truncation removed
    keys: Keys  # of the rows' content (`content_key`)
    files: NDArray[np.int32]  # indices into `file_names`
    lines: NDArray[np.int64]
    file_names: list[str]
    formats: dict[str, int]  # number of rows per format
    copies: int  # rows that repeat an earlier row
    num_targets: int
    dropped_rows: int  # rows of which the chat template omits some text
    key_use: KeyUse
    thoughts: ThoughtUse
    content: str  # sha256 of the samples
    rejects: RejectFile
    reading_notes: list[tuple[str, str]]  # files, each with a text on how it was read

    def conversations(self, wanted: set[bytes] | None = None) -> list[Conversation]:
        """Return the stored conversations, sorted by key; only those with a key in `wanted`, unless it is None.

        Only the conversations with the smallest keys are stored.
        """
        lines = (self.folder / "conversations.jsonl").read_text("utf-8").splitlines()
        kept = {bytes.fromhex(key): turns for key, turns in map(json.loads, lines)}
        return [[Message(*turn) for turn in kept[key]] for key in sorted(kept) if wanted is None or key in wanted]


def entry_key(source: Source, recipe: Preprocessing, tokenizer_digest: str, max_samples: int | None) -> str:
    """Return the name of the cache folder for the rows of `source`, preprocessed by `recipe`."""
    packages = [metadata.version(name) for name in ("transformers", "tokenizers")]
    facts = [LAYOUT, __version__, packages, source.content(file_sha256), asdict(recipe), tokenizer_digest, max_samples]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:40]


def tokenizer_digest(folder: Path, template: str | None) -> str:
    """Return the sha256 of the tokenizer's files and of `template`, which replaces the tokenizer's own."""
    files = sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()})
    facts = [[path.name, file_sha256(path)] for path in files] + [[template or ""]]
    return hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogatepass")).hexdigest()


def data_cache() -> Path:
    """Return the cache folder: LORAFIT_DATA_CACHE, or `data` in lorafit's cache folder."""
    own = os.environ.get("LORAFIT_DATA_CACHE")
    return user_path(own).absolute() if own else cache_folder() / "data"


def use_writable_cache() -> str | None:
    """Set LORAFIT_DATA_CACHE to a temporary folder if nothing can be written to the cache; return a note, or None.

    The folder is deleted at the end of the process.
    """
    folder = data_cache()
    try:
        ensure_writable(folder)
    except DiskError:
        temporary = tempfile.mkdtemp(prefix="lorafit-data-")
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        os.environ["LORAFIT_DATA_CACHE"] = temporary
        text = _("The cache {folder} cannot be written: tokenized data are kept in {temporary} until the end.")
        return text.format(folder=folder, temporary=temporary)
    return None


def file_sha256(path: Path) -> str:
    """Return the sha256 of the file's content.

    The digest is stored. It is computed again only if the path, inode, size, mtime or ctime of the file changes.
    """
    status = path.stat()
    facts = [str(path.absolute()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    note = data_cache() / "files" / hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogatepass")).hexdigest()
    try:
        return note.read_text("ascii")
    except (OSError, ValueError):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time() - status.st_mtime < 2:  # a later write may leave the same mtime
        return digest
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        beside = note.with_suffix(f".{os.getpid()}")
        beside.write_text(digest, "ascii")
        beside.replace(note)
    except OSError:  # full or read-only disk: the next call computes the digest again
        pass
    return digest


def find_cache_entry(key: str, files: list[str]) -> CacheEntry | None:
    """Return the cache entry `key`, or None if it is absent or damaged.

    `files` are the present paths of the source's files.
    """
    folder = data_cache() / key
    try:
        sizes = {
            name: facts["bytes"] for name, facts in json.loads((folder / MANIFEST).read_text("utf-8"))["files"].items()
        }
        if any((folder / name).stat().st_size != size for name, size in sizes.items()):
            return None
        entry = open_entry(folder, files)
        with suppress(OSError):  # a read-only cache
            os.utime(folder)  # `prune` deletes by mtime
        return entry
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find_or_build(
    key: str, source: Source, recipe: Preprocessing, load: LoadTokenizer, max_samples: int | None
) -> Generator[str, None, CacheEntry]:
    """Return the cache entry `key`, built if absent; yield progress messages. Raises DataError or DiskError."""
    if entry := find_cache_entry(key, source.files):
        return entry
    if note := use_writable_cache():
        yield note
    prune()
    folder = data_cache() / key
    try:
        with atomic_folder(folder) as beside:
            yield from write_entry(beside, source, recipe, load, max_samples)
            if find_cache_entry(key, source.files):
                raise _Other
    except _Other:
        pass
    except DiskError as error:
        fix = _("Free disk space there, or set LORAFIT_DATA_CACHE to a writable folder.")
        raise DiskError(error.what, where=error.where, found=error.found, fix=fix) from None
    return find_cache_entry(key, source.files) or open_entry(folder, source.files)


class _Other(Exception):
    """Discards the entry under construction: another process has completed the same entry."""


def write_entry(
    folder: Path, source: Source | Iterable[Row], recipe: Preprocessing, load: LoadTokenizer, max_samples: int | None
) -> Generator[str, None, None]:
    """Build an entry in the empty `folder`; yield progress messages.

    The entry holds the first `max_samples` good rows of the source (None: all).
    """
    rows, files = (source.rows(), source.files) if isinstance(source, Source) else (source, [])
    with _Writer(folder, recipe, files) as writer:
        writer.notes = source.reading.notes if isinstance(source, Source) else {}
        began = said = 0.0
        for share, made in tokenize_all(rows, recipe, load):
            writer.add(share, made if max_samples is None else made.first(max_samples - writer.rows))
            if writer.rows == max_samples:
                break
            now = time.monotonic()
            began, said = began or now, said or now  # excludes the time to load the tokenizer
            if now - said > REPORT_SECONDS:
                said, speed = now, writer.rows / (now - began)
                text = _("Tokenizing: {rows} rows, {speed} rows/s")
                yield text.format(rows=count_text(writer.rows), speed=count_text(round(speed)))


class _Writer:
    """Writer of the files of an entry. `smallest` holds the conversations with the smallest keys."""

    def __init__(self, folder: Path, recipe: Preprocessing, files: list[str]) -> None:
        self.folder, self.recipe, self.rows = folder, recipe, 0
        self.stack = ExitStack()
        self.file_places = {file: place for place, file in enumerate(dict.fromkeys(files))}
        self.formats: Counter[str] = Counter()
        self.targets, self.dropped = 0, 0
        self.key_use, self.thoughts = KeyUse(), ThoughtUse()
        self.notes: dict[tuple[str, str], None] = {}
        self.smallest: dict[bytes, Conversation] = {}
        self.highest = b"\xff" * 32  # a larger key is not among the smallest

    def __enter__(self) -> "_Writer":
        open_column = self.stack.enter_context
        self.columns = {
            name: open_column(NpyWriter(self.folder / f"{name}.npy", kind)) for name, kind in COLUMNS.items()
        }
        self.rejects = open_column((self.folder / "rejects.jsonl").open("w", encoding="utf-8"))
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.stack.__exit__(kind, error, trace)
        if kind is not None:
            return
        lines = (json.dumps([key.hex(), [tuple(asdict(turn).values()) for turn in said]], ensure_ascii=False) + "\n"
                 for key, said in sorted(self.smallest.items()))  # fmt: skip
        (self.folder / "conversations.jsonl").write_text("".join(lines), "utf-8")
        content = hashlib.sha256(
            "".join(self.columns[name].sha.hexdigest() for name in TRAINING_COLUMNS).encode()
        ).hexdigest()
        meta = {
            "files": list(self.file_places),
            "formats": dict(self.formats.most_common()),
            "copies": self.rows - len(np.unique(open_mapped(self.folder / "keys.npy"))),
            "targets": self.targets,
            "dropped": self.dropped,
            "content": content,
            "key_use": self.key_use.to_json(),
            "thoughts": self.thoughts.to_json(),
            "notes": [[file, recipe_of(text)] for file, text in self.notes],
        }
        (self.folder / "meta.json").write_text(json.dumps(meta), "utf-8")

    def add(self, share: list[Row], made: TokenizedRows) -> None:
        good = [share[place] for place in made.row_indices]
        places = [self.file_places.setdefault(row.file, len(self.file_places)) for row in good]
        values = {"keys": as_keys(made.keys), "files": places, "lines": [row.line for row in good]}
        for name, column in self.columns.items():
            column.append(values[name] if name in values else getattr(made, name))
        self.rows += len(good)
        self.targets += int(made.target_mask.sum())
        self.dropped += int(made.dropped.sum())
        self.key_use.add(made.key_use)
        self.thoughts.add(made.thoughts)
        self.formats.update(FORMAT_NAMES[number] for number in made.formats)
        for place, reason in made.rejects:
            row = share[place]
            self.rejects.write(Reject(row.file, row.line, reason, rows_in(row.value)).to_cache_line())
        self._keep_smallest(good, made.keys)

    def _keep_smallest(self, good: list[Row], keys: bytes) -> None:
        for i, row in enumerate(good):
            key = keys[32 * i : 32 * i + 32]
            if key < self.highest and key not in self.smallest:
                self.smallest[key] = self.recipe.read(row.value).conversation
        if len(self.smallest) > 2 * MAX_VALID_ROWS:
            self.smallest = dict(sorted(self.smallest.items())[:MAX_VALID_ROWS])
            self.highest = max(self.smallest)


def open_entry(folder: Path, files: list[str] | None = None) -> CacheEntry:
    """Open the entry that `write_entry` wrote to `folder`.

    `files` are the present paths of the source's files (None: the paths at the time of writing).
    """
    columns = {name: open_mapped(folder / f"{name}.npy") for name in COLUMNS}
    meta = json.loads((folder / "meta.json").read_text("utf-8"))
    lengths = columns["lengths"]
    now = list(dict.fromkeys(files or meta["files"]))
    renamed = {then: new for then, new in zip(meta["files"], now, strict=False) if then != new}
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    return CacheEntry(
        folder=folder,
        samples=SampleStore(columns["input_ids"], columns["target_mask"], starts, lengths),
        whole_lengths=columns["whole_lengths"],
        targets_cut=columns["targets_cut"],
        keys=columns["keys"],
        files=columns["files"],
        lines=columns["lines"],
        file_names=now,
        formats=meta["formats"],
        copies=meta["copies"],
        num_targets=meta["targets"],
        dropped_rows=meta["dropped"],
        key_use=KeyUse.from_json(meta["key_use"]),
        thoughts=ThoughtUse.from_json(meta["thoughts"]),
        content=meta["content"],
        rejects=RejectFile(folder / "rejects.jsonl", renamed),
        reading_notes=[(renamed.get(file, file), str(retranslate(text))) for file, text in meta.get("notes", [])],
    )


def prune() -> None:
    """Delete the entries that were not opened for 30 days."""
    for path in data_cache().glob("*/"):
        with suppress(OSError):  # another process renames or deletes it
            if path.name != "files" and time.time() - path.stat().st_mtime > UNUSED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
