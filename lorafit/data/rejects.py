"""Rejected rows as JSON lines with file, line and reason, and the check that they are not too many."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

from lorafit.errors import DataError
from lorafit.messages import _, recipe_of, retranslate
from lorafit.units import count_text


@dataclass(frozen=True)
class Reject:
    """A row, or a damaged stretch of `rows` rows, that is not used for training.

    `reason` says what was found and what was expected.
    """

    file: str
    line: int
    reason: str
    rows: int = 1

    def to_line(self) -> str:
        """Return the line for the user: file, line and reason."""
        return _json_line(self._facts())

    def to_cache_line(self) -> str:
        """Return the line for the cache, which other languages read: with the recipe of the reason."""
        return _json_line({**self._facts(), "again": recipe_of(self.reason)})

    def _facts(self) -> dict[str, object]:
        facts = asdict(self)
        if self.rows == 1:
            del facts["rows"]
        return facts

    @classmethod
    def read(cls, line: str) -> "Reject":
        """Return the reject of a line, with its reason in the current language if the line has the recipe."""
        facts = json.loads(line)
        again = facts.pop("again", None)
        with contextlib.suppress(LookupError, TypeError, ValueError):
            facts["reason"] = facts["reason"] if again is None else str(retranslate(again))
        return cls(**facts)


def _json_line(facts: dict[str, object]) -> str:
    return json.dumps(facts, ensure_ascii=False).encode("utf-8", "backslashreplace").decode() + "\n"


@dataclass(frozen=True)
class RejectFile:
    """Rejects on disk, read during iteration, so that a million of them use no memory."""

    path: Path
    renamed: Mapping[str, str] = field(default_factory=dict)  # path at the time of reading -> present path
    folder: object = None  # the temporary folder of `path`; this reference keeps it alive

    @cached_property
    def _count(self) -> int:
        with self.path.open("rb") as file:
            return sum(1 for _line in file)

    @cached_property
    def rows(self) -> int:
        """The number of rows that were lost: one reject may stand for many."""
        with self.path.open("rb") as file:
            return sum(json.loads(line).get("rows", 1) if b'"rows": ' in line else 1 for line in file)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Reject]:
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                reject = Reject.read(line)
                yield replace(reject, file=self.renamed.get(reject.file, reject.file))

    def current_file(self) -> Path:
        """Return the path of a reject file with the present paths of the data files.

        If a data file was renamed, a new reject file is written beside `path`.
        """
        if not self.renamed:
            return self.path
        name = hashlib.sha256(json.dumps(sorted(self.renamed.items())).encode()).hexdigest()[:8]
        path = self.path.with_name(f"rejects-{name}.jsonl")
        write_rejects(path, self)
        return path

    def __getitem__(self, index: int) -> Reject:
        found = next(islice(self, index, None), None)
        if found is None:
            raise IndexError(index)
        return found


def check_rejects(rejects: RejectFile, good_rows: int, most: float) -> None:
    """Raise DataError if no row is good or the share of bad rows exceeds `most`."""
    lost = rejects.rows
    rows = good_rows + lost
    if good_rows and lost <= most * rows:
        return
    first = [f"{reject.file}:{reject.line}: {reject.reason}" for reject in islice(rejects, 3)]
    ways = _("Fix or delete these rows (if they are too long, raise --max_length). Full list: {path}")
    more = _("Or accept more bad rows: --max_rejects {share} (now {most:g})")
    fix = ways.format(path=rejects.current_file())
    if good_rows:
        fix += "\n" + more.format(share=min(1.0, lost / rows + 0.01).__format__(".2f"), most=most)
    raise DataError(
        _("Too many rejected rows: {bad} of {all}.").format(bad=count_text(lost), all=count_text(rows)),
        where=rejects[0].file if rejects else None,
        found="\n".join(first) or None,
        fix=fix,
    )


def write_rejects(path: Path, rejects: RejectFile) -> None:
    """Write `rejects` to `path` as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(reject.to_line() for reject in rejects)
