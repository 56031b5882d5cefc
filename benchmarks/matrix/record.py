"""The record of a run: a line of JSON for each family, which a run of the same code and versions continues."""

import hashlib
import json
from collections.abc import Iterable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from race.results import append, read

PACKAGES = ("torch", "transformers", "peft", "mlx", "mlx-lm")
HERE = Path(__file__).parent
OURS = (HERE, HERE.parents[1] / "tests/support/model_zoo")
SHOWS_ONLY = "page.py"  # no result depends on it


def lorafit_folder() -> Path:
    """Return the folder of the package `lorafit` that this Python imports."""
    spec = find_spec("lorafit")
    assert spec is not None
    return Path(str(spec.origin)).parent


def about() -> dict[str, str]:
    """Return the versions of the libraries, and digests of lorafit's code and of this benchmark's."""
    return {**versions(), "lorafit": _digest([lorafit_folder()]), "benchmark": _digest(OURS)}


def versions() -> dict[str, str]:
    """Return the versions of the libraries that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _digest(folders: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*.py") if path != HERE / SHOWS_ONLY):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


class Record:
    """The rows in the file `path` that are of the same code and versions as this run; others stay in the file unused."""

    def __init__(self, path: Path) -> None:
        self.path, self.about = path, about()
        self.rows: dict[str, dict[str, Any]] = {
            line["name"]: line["row"] for line in read(path) if line.get("about") == self.about
        }

    def add(self, row: dict[str, Any]) -> None:
        """Append the row of a family to the file."""
        self.rows[row["name"]] = row
        append(self.path, {"name": row["name"], "about": self.about, "row": json.loads(json.dumps(row))})
