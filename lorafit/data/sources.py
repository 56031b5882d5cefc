"""Which rows does a data set's name stand for? A file, `demo` or a hub's id, and a slice of its split.

What a file holds is read by readers.py; what a row means is decided by formats.py.
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lorafit.data.readers import READERS, Row, read_file
from lorafit.demo import data_path
from lorafit.errors import DataError, HubError
from lorafit.hub import ensure_reachable, is_local, translate, use_endpoint
from lorafit.messages import _

BOUND = r"(-?\d+%?)?"
SPLIT = re.compile(rf"([\w.-]+)(?:\[{BOUND}:{BOUND}\])?")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Slice:
    """A split's `name` and, as written, where its rows start and stop: "100", "-100", "10%", or None for its end."""

    name: str
    start: str | None = None
    stop: str | None = None

    @property
    def counts(self) -> bool:
        """Whether the bounds need the number of all rows."""
        return any(bound is not None and not bound.isdigit() for bound in (self.start, self.stop))

    def bounds(self, rows: int) -> tuple[int, int | None]:
        """First row and the one behind the last, of `rows` rows (0 where that does not matter)."""
        first = 0 if self.start is None else _position(self.start, rows)
        return first, None if self.stop is None else _position(self.stop, rows)


def _position(bound: str, rows: int) -> int:
    if bound.endswith("%"):
        share = int(bound[:-1])
        return _position(str(round(share * rows / 100)), rows)  # rounded as `datasets` rounds
    number = int(bound)
    return max(0, rows + number) if number < 0 else number


def parse_split(split: str) -> Slice:
    """`train`, `train[:1000]`, `train[10%:20%]`, `train[100:]`. Raises DataError for anything else."""
    match = SPLIT.fullmatch(split.strip())
    bounds = match.groups()[1:] if match else ()
    if match is None or any(b and b.endswith("%") and not -100 <= int(b[:-1]) <= 100 for b in bounds):
        fix = _("Write it like `train`, `train[:1000]`, `train[100:]` or `train[10%:20%]`.")
        raise DataError(
            _("The slice of the data set cannot be understood."), where="dataset_split", found=split, fix=fix
        )
    return Slice(*match.groups())


def read_rows(name: str, split: str, *, hub: str = "huggingface", endpoint: str | None = None) -> Iterator[Row]:
    """The rows of data set `name`, streamed. Raises DataError or HubError, at once where it can, else on the way."""
    part = parse_split(split)
    path = data_path() if name == "demo" else Path(name).expanduser()
    if name != "demo" and not is_local(name) and HUB_ID.fullmatch(name) and path.suffix.lower() not in READERS:
        return _some(_hub_rows(name, part, hub, endpoint), name, split)
    _check_file(path)
    if part.name != "train":
        fix = _("Use `train`, with a slice if you like.")
        raise DataError(_("A file has one split: train."), where=path, found=split, fix=fix)
    return _some(_slice_rows(path, part), path, split)


def _slice_rows(path: Path, part: Slice) -> Iterator[Row]:
    start, stop = part.bounds(sum(1 for _row in read_file(path)) if part.counts else 0)
    return islice(read_file(path), start, stop)


def _some(rows: Iterator[Row], where: object, split: str) -> Iterator[Row]:
    """`rows`, or DataError when there is none."""
    row = None
    for row in rows:
        yield row
    if row is None:
        fix = _("Check the file and --dataset_split.")
        raise DataError(_("There is no row in the data."), where=where, found=split, fix=fix)


def _check_file(path: Path) -> None:
    """Raise DataError unless `path` is a data file with something in it."""
    known = ", ".join(READERS)
    if path.is_dir():
        files = sorted(p.name for p in path.iterdir() if p.suffix.lower() in READERS)
        found = ", ".join(files[:10]) or _("no data file in it")
        raise DataError(_("This is a folder, not a data file."), where=path, found=found, fix=_("Name one file in it."))
    if not path.is_file():
        raise DataError(_("There is no such data file."), where=path, fix=_near(path))
    if path.suffix.lower() not in READERS:
        fix = _("Turn it into one of these: {known}.").format(known=known)
        raise DataError(_("Unknown kind of data file."), where=path, found=path.suffix or _("no extension"), fix=fix)
    if path.stat().st_size == 0:
        raise DataError(_("The data file is empty."), where=path, found="0 bytes", fix=_("Fetch or write it again."))


def _near(path: Path) -> str:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    if near := difflib.get_close_matches(path.name, names, n=3):
        return _("Did you mean {names}?").format(names=", ".join(str(path.with_name(name)) for name in near))
    return _("Give a file that exists, a hub id like `owner/name`, or `demo`.")


def _hub_rows(name: str, part: Slice, hub: str, endpoint: str | None) -> Iterator[Row]:
    if hub != "huggingface":
        fix = _("Download it there and give the file, or use --hub huggingface with --hf_endpoint.")
        raise HubError(_("Data sets come from the Hugging Face hub or a mirror of it."), where=name, found=hub, fix=fix)
    table = _load(name, part.name, endpoint)
    start, stop = part.bounds(len(table))
    return (Row(table[i], f"{name}:{part.name}", i + 1) for i in range(len(table))[start:stop])


def _load(name: str, split: str, endpoint: str | None) -> Any:
    """The whole split as `datasets` keeps it: on the disk, mapped into memory."""
    use_endpoint(endpoint)
    ensure_reachable(endpoint, name, "dataset")
    import datasets  # a second to import, and needed for hub ids only

    try:
        return datasets.load_dataset(name, split=split)
    except ValueError as error:
        if "split" not in str(error):
            raise translate(error, name, "dataset") from None
        fix = _("Give one of those to --dataset_split.")
        raise DataError(_("The data set has no such split."), where=f"{name}:{split}", found=error, fix=fix) from None
    except Exception as error:  # the hub's client, its builders and the network raise dozens of kinds
        raise translate(error, name, "dataset") from None
