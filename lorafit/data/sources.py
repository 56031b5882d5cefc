"""Data sources: files, folders, zip archives, names in dataset_info.json, `demo`, dataset IDs, with a slice of the rows.

The readers package reads the files; formats.py interprets the rows.
"""

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

from lorafit.data.dataset_info import NAME as DATASET_INFO
from lorafit.data.dataset_info import DatasetEntry, find_entry, read_entries
from lorafit.data.hub_data import ANY_SUBSET, Subset, hub_part
from lorafit.data.readers.encoding import parse_encoding
from lorafit.data.readers.reading import Reading
from lorafit.data.readers.registry import Row, is_data_file, read_file, supported_extensions
from lorafit.data.readers.zip_reader import ZIP, member_path, read_member, zip_members
from lorafit.errors import DataError
from lorafit.messages import _, listed
from lorafit.models.demo import data_path
from lorafit.models.hub import fetch_modelscope_data, is_local
from lorafit.paths import user_path

BOUND = r"(-?\d+%?)?"
SPLIT = re.compile(rf"([\w.-]+)(?:\[{BOUND}:{BOUND}\])?")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Words in paths that mark a split: test.jsonl, law_train-00000-of-00002.parquet, data/validation/a.json.
SPLIT_WORDS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation",
               "dev": "validation", "test": "test", "eval": "test"}  # fmt: skip
Name = TypeVar("Name", str, Path)
FileDigest = Callable[[Path], str]  # returns a file's digest


@dataclass(frozen=True)
class Slice:
    """A split's `name` and the bounds of its rows as written: "100", "-100", "10%", or None for no bound."""

    name: str
    start: str | None = None
    stop: str | None = None

    @property
    def needs_row_count(self) -> bool:
        """Whether the bounds depend on the total number of rows."""
        return any(bound is not None and not bound.isdigit() for bound in (self.start, self.stop))

    def bounds(self, rows: int) -> tuple[int, int | None]:
        """Return the first row and one past the last, of `rows` rows (not used unless `needs_row_count`)."""
        first = 0 if self.start is None else _position(self.start, rows)
        return first, None if self.stop is None else _position(self.stop, rows)


def _position(bound: str, rows: int) -> int:
    if bound.endswith("%"):
        share = int(bound[:-1])
        return _position(str(round(share * rows / 100)), rows)  # the rounding of `datasets`
    number = int(bound)
    return max(0, rows + number) if number < 0 else number


def parse_split(split: str) -> Slice:
    """Parse `train`, `train[:1000]`, `train[10%:20%]` or `train[100:]`. Raises DataError for any other form."""
    match = SPLIT.fullmatch(split.strip())
    bounds = match.groups()[1:] if match else ()
    if match is None or any(b and b.endswith("%") and not -100 <= int(b[:-1]) <= 100 for b in bounds):
        fix = _("Use a form like `train`, `train[:1000]`, `train[100:]` or `train[10%:20%]`.")
        raise DataError(_("Invalid split or slice of the dataset."), where="dataset_split", found=split, fix=fix)
    return Slice(*match.groups())


class SourcePart(Protocol):
    """One file, or one data set of a hub."""

    @property
    def file(self) -> str:
        """The value of `Row.file` in its rows."""
        ...

    def rows(self, reading: Reading) -> Iterator[Row]: ...

    def content(self, content_of: FileDigest) -> str:
        """Return a string that identifies the content."""
        ...


@dataclass(frozen=True)
class FilePart:
    """A file on disk."""

    path: Path

    @property
    def file(self) -> str:
        return str(self.path)

    def rows(self, reading: Reading) -> Iterator[Row]:
        return read_file(self.path, reading)

    def content(self, content_of: FileDigest) -> str:
        return content_of(self.path)


@dataclass(frozen=True)
class ZipPart:
    """A file in a zip archive."""

    path: Path
    member: str

    @property
    def file(self) -> str:
        return member_path(self.path, self.member)

    def rows(self, reading: Reading) -> Iterator[Row]:
        return read_member(self.path, self.member, reading)

    def content(self, content_of: FileDigest) -> str:
        return f"{content_of(self.path)} {self.member}"


@dataclass(frozen=True)
class EntryPart:
    """A file of an entry in dataset_info.json."""

    inner: FilePart
    entry: DatasetEntry

    @property
    def file(self) -> str:
        return self.inner.file

    def rows(self, reading: Reading) -> Iterator[Row]:
        for row in islice(self.inner.rows(reading), self.entry.num_samples):
            yield Row(self.entry.row(row.value), row.file, row.line)

    def content(self, content_of: FileDigest) -> str:
        return f"{self.inner.content(content_of)} {self.entry.recipe}"


@dataclass(frozen=True)
class Source:
    """The rows that a name and a slice select: the rows of all `parts` end to end, then sliced."""

    name: str
    parts: tuple[SourcePart, ...]
    slice: Slice
    reading: Reading = field(default_factory=Reading)

    def rows(self) -> Iterator[Row]:
        """Yield the rows. Broken rows count in the slice too. Raises DataError if there are no rows."""
        start, stop = self.slice.bounds(sum(1 for _row in self._all()) if self.slice.needs_row_count else 0)
        row = None
        for row in islice(self._all(), start, stop):
            yield row
        if row is None:
            found = f"{self.slice.name}[{self.slice.start or ''}:{self.slice.stop or ''}]"
            fix = _("Check the data and --dataset_split.")
            raise DataError(_("The selected data contains no rows."), where=self.name, found=found, fix=fix)

    @property
    def files(self) -> list[str]:
        """The values of `Row.file` in the rows, in order."""
        return [part.file for part in self.parts]

    def content(self, content_of: FileDigest) -> list[str]:
        """Return strings that identify the rows."""
        bounds = [str(self.slice.start), str(self.slice.stop)]
        encoding = [self.reading.encoding] if self.reading.encoding else []
        return [*(part.content(content_of) for part in self.parts), *bounds, *encoding]

    def _all(self) -> Iterator[Row]:
        for part in self.parts:
            yield from part.rows(self.reading)


def open_source(
    name: str,
    split: str,
    *,
    hub: str = "huggingface",
    endpoint: str | None = None,
    encoding: str | None = None,
    subset: Subset = ANY_SUBSET,
) -> Source:
    """Return the source that `name` (one or several, separated by commas) and `split` select.

    Raises ConfigError, DataError or HubError.
    """
    part, reading = parse_split(split), Reading(parse_encoding(encoding))
    _check_subset(name, subset, hub)
    parts = [found for one in _names(name) for found in _parts(one, part.name, hub, endpoint, subset)]
    return Source(name, tuple(parts), part, reading)


def check_source(
    name: str, split: str, encoding: str | None = None, subset: Subset = ANY_SUBSET, hub: str = "huggingface"
) -> None:  # fmt: skip
    """Raise ConfigError or DataError for the faults of the settings that can be found without a hub."""
    part = parse_split(split)
    parse_encoding(encoding)
    _check_subset(name, subset, hub)
    for one in _names(name):
        if not _is_hub_id(one):
            _local_parts(one, part.name)


def _check_subset(name: str, subset: Subset, hub: str) -> None:
    """Raise DataError for a subset of data that have none."""
    if subset.name is None or (hub != "modelscope" and any(map(_is_hub_id, _names(name)))):
        return
    fix = _("Remove --{setting}, or give a dataset ID like `owner/name`.").format(setting=subset.setting)
    found = f"{subset.setting}: {subset.name}"
    raise DataError(_("Only datasets of Hugging Face have subsets."), where=name, found=found, fix=fix)


@dataclass(frozen=True)
class LocalData:
    """The files of one of the names in a setting. None for `demo` and for dataset IDs.

    `root` is the folder that holds the files; `inside` is what names the data in that folder.
    """

    name: str
    files: list[Path]
    root: Path = Path()
    inside: str = ""


def local_files(name: str, split: str) -> Iterator[LocalData]:
    """Yield each of the names in `name` with its files on disk. Raises DataError."""
    part = parse_split(split)
    for one in _names(name):
        if one == "demo" or _is_hub_id(one):
            yield LocalData(one, [])
            continue
        path, entry = user_path(one), _entry_of(one)
        if entry is not None:
            files = [found.path for found in _entry_files(entry, part.name)]
            yield LocalData(one, [entry.folder / DATASET_INFO, *files], entry.folder, entry.name)
        elif path.is_dir():
            yield LocalData(one, [found.path for found in _folder(path, part.name)], path, ".")
        else:
            _local_parts(one, part.name)
            yield LocalData(one, [path], path.parent, path.name)


def named_paths(name: str) -> list[tuple[str, Path | None]]:
    """Return each of the names in `name` with its path; None for `demo` and for dataset IDs. Raises DataError."""
    local = {one: one != "demo" and not _is_hub_id(one) for one in _names(name)}
    return [(one, Path(one).expanduser() if local[one] else None) for one in _names(name)]


def read_rows(name: str, split: str, *, hub: str = "huggingface", endpoint: str | None = None) -> Iterator[Row]:
    """Return an iterator over the rows of data set `name`.

    Raises DataError or HubError: at the call where possible, else during iteration.
    """
    return open_source(name, split, hub=hub, endpoint=endpoint).rows()


def _names(name: str) -> list[str]:
    if Path(name).exists():
        return [name]
    return [one.strip() for one in name.split(",") if one.strip()] or [name]


def _is_hub_id(name: str) -> bool:
    if name == "demo" or is_local(name) or HUB_ID.fullmatch(name) is None or is_data_file(Path(name)):
        return False
    return Path(name).suffix.lower() != ZIP and not read_entries(Path(name).parent)


def _entry_of(name: str) -> DatasetEntry | None:
    """Return the entry of dataset_info.json that `name` means: `folder/entry`, or a folder with one entry."""
    path = user_path(name)
    if path.is_dir():
        return find_entry(path, "")
    is_file = path.exists() or is_data_file(path) or path.suffix.lower() == ZIP
    return None if is_file else find_entry(path.parent, path.name)


def _entry_files(entry: DatasetEntry, split: str) -> list[FilePart]:
    if entry.path.is_dir():
        return _folder(entry.path, split)
    _check_file(entry.path)
    _check_only_split(entry.path, split)
    return [FilePart(entry.path)]


def _parts(name: str, split: str, hub: str, endpoint: str | None, subset: Subset) -> list[SourcePart]:
    if not _is_hub_id(name):
        return _local_parts(name, split)
    if hub == "modelscope":
        return list(_folder(fetch_modelscope_data(name), split))
    return [hub_part(name, split, subset, endpoint)]


def _local_parts(name: str, split: str) -> list[SourcePart]:
    if name == "demo":
        return _file(data_path(), split)
    path = user_path(name)
    if (entry := _entry_of(name)) is not None:
        return [EntryPart(part, entry) for part in _entry_files(entry, split)]
    return list(_folder(path, split)) if path.is_dir() else _file(path, split)


def _file(path: Path, split: str) -> list[SourcePart]:
    _check_file(path)
    if path.suffix.lower() == ZIP:
        names = _of_split({name: _split_of(Path(name)) for name in zip_members(path)}, split, path)
        return [ZipPart(path, name) for name in names]
    _check_only_split(path, split)
    return [FilePart(path)]


def _check_only_split(path: Path, split: str) -> None:
    if split != "train":
        fix = _("Use `train`, with or without a slice.")
        raise DataError(_("A file has only one split: train."), where=path, found=split, fix=fix)


def _folder(folder: Path, split: str) -> list[FilePart]:
    """Return the data files in `folder` and its subfolders, sorted by path. Raises DataError."""
    inside = (
        p
        for p in folder.rglob("*")
        if not any(part.startswith((".", "~$")) for part in p.relative_to(folder).parts) and p.name != DATASET_INFO
    )
    files = sorted(p for p in inside if p.is_file() and is_data_file(p) and p.stat().st_size)
    if not files:
        fix = _("Give a folder with data files: {known}.").format(known=supported_extensions())
        found = listed(sorted(p.name for p in folder.iterdir())[:10]) or _("empty folder")
        raise DataError(_("The folder contains no data file."), where=folder, found=found, fix=fix)
    named = {path: _split_of(path.relative_to(folder)) for path in files}
    return [FilePart(path) for path in _of_split(named, split, folder)]


def _of_split(named: dict[Name, str | None], split: str, where: Path) -> list[Name]:
    """Return the files of `split`, by the splits that their names mark. Raises DataError if there are none.

    If no name marks a split, all files form the split `train`.
    """
    splits = set(named.values()) - {None}
    if not splits and split == "train":
        return list(named)
    chosen = [name for name, own in named.items() if own == SPLIT_WORDS.get(split, split)]
    if not chosen:
        known = listed(sorted(map(str, splits))) or "train"
        fix = _("Set --dataset_split to one of these: {known}.").format(known=known)
        raise DataError(_("No such split in these files."), where=where, found=split, fix=fix)
    return chosen


def _split_of(path: Path) -> str | None:
    """Return the split that the file's name marks, else the nearest folder's name; None if no name marks a split."""
    for text in (path.name.lower(), *(part.lower() for part in reversed(path.parts[:-1]))):
        for word in re.split(r"[^a-z]+", text):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return None


def _check_file(path: Path) -> None:
    """Raise DataError unless `path` is a data file that is not empty."""
    if not path.is_file():
        raise DataError(_("Data file not found."), where=path, fix=_near(path))
    if not is_data_file(path) and path.suffix.lower() != ZIP:
        fix = _("Convert it to one of these formats: {known}.").format(known=supported_extensions())
        raise DataError(_("Unsupported data file format."), where=path, found=path.suffix or _("no extension"), fix=fix)
    if path.stat().st_size == 0:
        raise DataError(
            _("The data file is empty."), where=path, found="0 bytes", fix=_("Download or create the file again.")
        )


def _near(path: Path) -> str:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    if near := difflib.get_close_matches(path.name, names, n=3):
        return _("Did you mean {names}?").format(names=listed(str(path.with_name(name)) for name in near))
    return _("Give an existing file, a dataset ID like `owner/name`, or `demo`.")
