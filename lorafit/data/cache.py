"""Where are samples kept from one run to the next? In a folder named by all that decides them, whole or absent.

The name is a digest of the files' content, the slice, the tokenizer's files, the template, the settings and this
program's version; no tokenizer is imported to find it. Two processes may build the same folder: the first to finish
wins. Folders that nobody opened for a month are deleted.
"""

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafit import __version__
from lorafit.atomic import MANIFEST, whole_folder
from lorafit.data.formats import Conversation, Message
from lorafit.data.micro_batch import Int32
from lorafit.data.preprocessing import Preprocessing
from lorafit.data.readers.row import Row
from lorafit.data.rejects import Reject, RejectFile
from lorafit.data.sources import Source
from lorafit.data.split import KEY, MAX_VALID_ROWS, Keys, as_keys
from lorafit.data.store import Column, SampleStore, mapped
from lorafit.data.tokenize import FORMAT_NAMES, Load, TokenizedRows, make_all
from lorafit.errors import DiskError
from lorafit.messages import _
from lorafit.paths import cache_folder
from lorafit.units import count_text

LAYOUT = 1  # of the folder: a change here makes every older one invisible
COLUMNS: dict[str, Any] = {
    "input_ids": np.int32, "target_mask": np.bool_,  # a value a token; below, a value a row
    "lengths": np.int32, "whole_lengths": np.int32, "targets_cut": np.int32, "dropped": np.bool_, "formats": np.uint8,
    "keys": KEY, "files": np.int32, "lines": np.int64,
}  # fmt: skip
CONTENT = ("lengths", "input_ids", "target_mask")  # what a run learns from
TOKENIZER_FILES = ("tokenizer*", "*.jinja", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
                   "*.model", "*.tiktoken", "config.json")  # fmt: skip
REPORT_SECONDS = 2.0
UNUSED_SECONDS = 30 * 86400.0


@dataclass(frozen=True)
class CacheEntry:
    """Samples on the disk, in the rows' order. Arrays [N] over the rows, mapped into memory."""

    folder: Path
    samples: SampleStore
    whole_lengths: Int32  # before any cut
    targets_cut: Int32
    keys: Keys  # of the rows' content
    files: NDArray[np.int32]  # places in `file_names`
    lines: NDArray[np.int64]
    file_names: list[str]
    formats: dict[str, int]  # rows of each
    copies: int  # rows that repeat an earlier one
    num_targets: int
    dropped_rows: int  # of which the template left something out
    content: str  # sha256 of the samples
    rejects: RejectFile

    def conversations(self, wanted: set[bytes] | None = None) -> list[Conversation]:
        """Those of the wanted keys (None: of all) that are kept here, the smallest ones, by key."""
        lines = (self.folder / "conversations.jsonl").read_text("utf-8").splitlines()
        kept = {bytes.fromhex(key): turns for key, turns in map(json.loads, lines)}
        return [[Message(*turn) for turn in kept[key]] for key in sorted(kept) if wanted is None or key in wanted]


def key_of(source: Source, recipe: Preprocessing, tokenizer_digest: str, max_samples: int | None) -> str:
    """The name of the folder for these rows, made by this recipe."""
    packages = [metadata.version(name) for name in ("transformers", "tokenizers")]
    facts = [LAYOUT, __version__, packages, source.content(content_of), asdict(recipe), tokenizer_digest, max_samples]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:40]


def tokenizer_digest(folder: Path, template: str | None) -> str:
    """What tells a tokenizer from any other: its files, and the template that is put in place of its own."""
    files = sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()})
    facts = [[path.name, content_of(path)] for path in files] + [[template or ""]]
    return hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogatepass")).hexdigest()


def data_cache() -> Path:
    """LORAFIT_DATA_CACHE, or a folder in the user's cache."""
    own = os.environ.get("LORAFIT_DATA_CACHE")
    return Path(own).expanduser().absolute() if own else cache_folder() / "data"


def content_of(path: Path) -> str:
    """sha256 of the file; read anew only when the system says that the file was touched."""
    status = path.stat()
    facts = [str(path.absolute()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    note = data_cache() / "files" / hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogatepass")).hexdigest()
    try:
        return note.read_text("ascii")
    except (OSError, ValueError):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time() - status.st_mtime < 2:  # might be written to once more within the clock's grain
        return digest
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        beside = note.with_suffix(f".{os.getpid()}")
        beside.write_text(digest, "ascii")
        beside.replace(note)
    except OSError:  # a full or read-only disk costs time here, no more
        pass
    return digest


def find_cache_entry(key: str, files: list[str]) -> CacheEntry | None:
    """The entry of that name, or None; `files` are what its files are called now."""
    folder = data_cache() / key
    try:
        sizes = {name: facts["bytes"] for name, facts in json.loads((folder / MANIFEST).read_text())["files"].items()}
        if any((folder / name).stat().st_size != size for name, size in sizes.items()):
            return None
        entry = open_entry(folder, files)
        os.utime(folder)  # was of use
        return entry
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find_or_build(
    key: str, source: Source, recipe: Preprocessing, load: Load, max_samples: int | None
) -> Generator[str, None, CacheEntry]:
    """The entry of that name, built where it is not there; says how far it is. Raises DataError, DiskError."""
    if entry := find_cache_entry(key, source.files):
        return entry
    prune()
    folder = data_cache() / key
    try:
        with whole_folder(folder) as beside:
            yield from write_entry(beside, source, recipe, load, max_samples)
            if find_cache_entry(key, source.files):
                raise _Other
    except _Other:
        pass
    except DiskError as error:
        fix = _("Make room there, or set LORAFIT_DATA_CACHE to a folder that can be written.")
        raise DiskError(error.what, where=error.where, found=error.found, fix=fix) from None
    return find_cache_entry(key, source.files) or open_entry(folder, source.files)


class _Other(Exception):
    """Another process was faster."""


def write_entry(
    folder: Path, source: Source | Iterable[Row], recipe: Preprocessing, load: Load, max_samples: int | None
) -> Generator[str, None, None]:
    """Build an entry from the source's rows (the first `max_samples` good ones) in the empty `folder`."""
    rows, files = (source.rows(), source.files) if isinstance(source, Source) else (source, [])
    with _Writer(folder, recipe, files) as writer:
        began = said = 0.0
        for share, made in make_all(rows, recipe, load):
            writer.add(share, made if max_samples is None else made.first(max_samples - writer.rows))
            if writer.rows == max_samples:
                break
            now = time.monotonic()
            began, said = began or now, said or now  # loading the tokenizer does not count
            if now - said > REPORT_SECONDS:
                said, speed = now, writer.rows / (now - began)
                text = _("Tokenising: {rows} rows, {speed} a second")
                yield text.format(rows=count_text(writer.rows), speed=count_text(round(speed)))


class _Writer:
    """The files of an entry, written as rows go by."""

    def __init__(self, folder: Path, recipe: Preprocessing, files: list[str]) -> None:
        self.folder, self.recipe, self.rows = folder, recipe, 0
        self.stack = ExitStack()
        self.file_places = {file: place for place, file in enumerate(dict.fromkeys(files))}
        self.formats: Counter[str] = Counter()
        self.targets, self.dropped = 0, 0
        self.smallest: dict[bytes, Conversation] = {}
        self.highest = b"\xff" * 32  # keys above it are not among the smallest

    def __enter__(self) -> "_Writer":
        open_column = self.stack.enter_context
        self.columns = {name: open_column(Column(self.folder / f"{name}.npy", kind)) for name, kind in COLUMNS.items()}
        self.rejects = open_column((self.folder / "rejects.jsonl").open("w", encoding="utf-8"))
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.stack.__exit__(kind, error, trace)
        if kind is not None:
            return
        lines = (json.dumps([key.hex(), [tuple(asdict(turn).values()) for turn in said]], ensure_ascii=False) + "\n"
                 for key, said in sorted(self.smallest.items()))  # fmt: skip
        (self.folder / "conversations.jsonl").write_text("".join(lines), "utf-8")
        content = hashlib.sha256("".join(self.columns[name].sha.hexdigest() for name in CONTENT).encode()).hexdigest()
        meta = {
            "files": list(self.file_places),
            "formats": dict(self.formats.most_common()),
            "copies": self.rows - len(np.unique(mapped(self.folder / "keys.npy"))),
            "targets": self.targets,
            "dropped": self.dropped,
            "content": content,
        }
        (self.folder / "meta.json").write_text(json.dumps(meta), "utf-8")

    def add(self, share: list[Row], made: TokenizedRows) -> None:
        good = [share[place] for place in made.places]
        places = [self.file_places.setdefault(row.file, len(self.file_places)) for row in good]
        values = {"keys": as_keys(made.keys), "files": places, "lines": [row.line for row in good]}
        for name, column in self.columns.items():
            column.append(values[name] if name in values else getattr(made, name))
        self.rows += len(good)
        self.targets += int(made.target_mask.sum())
        self.dropped += int(made.dropped.sum())
        self.formats.update(FORMAT_NAMES[number] for number in made.formats)
        for place, reason in made.rejects:
            self.rejects.write(Reject(share[place].file, share[place].line, reason).to_line())
        self._keep_smallest(good, made.keys)

    def _keep_smallest(self, good: list[Row], keys: bytes) -> None:
        for i, row in enumerate(good):
            key = keys[32 * i : 32 * i + 32]
            if key < self.highest and key not in self.smallest:
                self.smallest[key] = self.recipe.read(row.value)[1]
        if len(self.smallest) > 2 * MAX_VALID_ROWS:
            self.smallest = dict(sorted(self.smallest.items())[:MAX_VALID_ROWS])
            self.highest = max(self.smallest)


def open_entry(folder: Path, files: list[str] | None = None) -> CacheEntry:
    """What write_entry() wrote into `folder`; `files` are what its files are called now."""
    columns = {name: mapped(folder / f"{name}.npy") for name in COLUMNS}
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
        content=meta["content"],
        rejects=RejectFile(folder / "rejects.jsonl", renamed),
    )


def prune() -> None:
    """Delete entries that nobody opened for a month."""
    for path in data_cache().glob("*/"):
        if path.name != "files" and time.time() - path.stat().st_mtime > UNUSED_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
