"""export.json: what an export was made from, what was measured on it, and the digest of each of its files.

It holds figures and digests, and no text of the user: no row of the data, no prompt and no folder of this machine.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from lorafit import __version__
from lorafit.errors import ExportError
from lorafit.messages import _

NAME = "export.json"
LAYOUT = 1  # of export.json
PACKAGES = ("transformers", "torch", "numpy", "safetensors")


@dataclass(frozen=True)
class Survival:
    """What of the adapter's delta d is left after rounding, tensor by tensor: slope = <q(W+d)-q(W), d> / <d, d>.

    1: all of it; 0: nothing. `slopes` are by the names in the base's files, without tensors whose delta is zero.
    `reach` is |d| / |W| of the same tensors.
    """

    slopes: dict[str, float]
    reach: dict[str, float]
    zero: int = 0  # tensors whose delta is zero


@dataclass(frozen=True)
class Behaviour:
    """Next-token distributions of the export beside those of base and adapter (live), means over `positions`.

    In nats, `kl_export` is KL(live || export), `kl_base` KL(live || base), and `kl_rounding` KL(live || live on the base
    rounded to the export's type). `ratio` is the first over the second, None where the adapter changes nothing.
    `largest` is the largest difference of two log-probabilities of tokens that the live model gives at least e^-12.
    `top1` is the share of positions with the same most likely token. `rows` tells which rows were used: "validation" or "probe".
    """

    rows: str
    positions: int
    kl_export: float
    kl_base: float
    kl_rounding: float
    ratio: float | None
    largest: float
    top1: float


@dataclass(frozen=True)
class Certificate:
    """The content of export.json."""

    target: str
    base: dict[str, Any]
    adapter: dict[str, Any]
    dtype: str | None = None
    quantization: str = "none"
    survival: Survival | None = None
    behaviour: Behaviour | None = None
    template: dict[str, Any] = field(default_factory=dict)
    stop_ids: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # texts for the user: what was not measured, and why
    commands: list[str] = field(default_factory=list)  # what to run next
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    layout: int = LAYOUT

    def write(self, folder: Path) -> None:
        """Write export.json into `folder`."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=1)
        (folder / NAME).write_text(text + "\n", "utf-8")


def versions() -> dict[str, str]:
    """Return the versions of lorafit and of the packages that an export depends on."""
    return {"lorafit": __version__, **{name: metadata.version(name) for name in PACKAGES}}


def file_digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and sha256 of all files in `folder` but export.json, by their names."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / NAME:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    return found


def read_certificate(folder: Path) -> dict[str, Any]:
    """Return the content of export.json in `folder`. Raises ExportError if there is none that lorafit wrote."""
    try:
        facts: dict[str, Any] = json.loads((folder / NAME).read_text("utf-8"))
        if facts["layout"] != LAYOUT or not all(isinstance(one["sha256"], str) for one in facts["files"].values()):
            raise ValueError(f"layout: {facts['layout']}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ExportError(
            _("No certificate of an export found."),
            where=folder / NAME,
            found=error,
            fix=_("Give the folder that `lorafit export` wrote."),
        ) from None
    return facts
