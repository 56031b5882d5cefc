"""export.json: what an export was made from, what was measured on it, and the digest of each of its files.

It holds figures and digests, and no text of the user: no row of the data, no prompt and no folder of this machine.
"""

import contextlib
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
PACKAGES = ("transformers", "torch", "numpy", "safetensors", "gguf", "xllamacpp", "mlx-lm")


@dataclass(frozen=True)
class Survival:
    """What of the adapter's delta d is left after rounding, tensor by tensor: slope = <q(W+d)-q(W), d> / <d, d>.

    1: all of it; 0: nothing. `slopes` are by the names in the base's files, without tensors whose delta is zero.
    `reach` is |d| / |W| of the same tensors.
    """

    slopes: dict[str, float]
    reach: dict[str, float]
    zero: int = 0  # tensors whose delta is zero

    def add(self, name: str, kept: float, size: float, norm: float) -> None:
        """Add a tensor: `kept` is <q(W+d)-q(W), d>, `size` <d, d> and `norm` <W, W>, each of the same values."""
        if size > 0:
            self.slopes[name] = kept / size
            self.reach[name] = (size / norm) ** 0.5 if norm else 1.0


@dataclass(frozen=True)
class Losses:
    """Mean losses in nats over `targets` tokens: of the base, of the live adapter, and of the export.

    `gain` is base - live with the ends of its 95% interval. `kept` is (base - export) / (base - live) likewise, the share of
    what was learned; None where the interval of the gain reaches 0: then it cannot be said.
    """

    targets: int
    base: float
    live: float
    export: float
    gain: tuple[float, float, float]
    kept: tuple[float, float, float] | None


@dataclass(frozen=True)
class Behaviour:
    """Next-token distributions of the export beside those of base and adapter (live), means over `positions`.

    In nats, `kl_export` is KL(live || export), `kl_base` KL(live || base), and `kl_rounding` KL(live || live on the base
    rounded to the export's type). `ratio` is the first over the second, None where the adapter changes nothing.
    `largest` is the largest difference of two log-probabilities of tokens that the live model gives at least e^-12.
    `top1` is the share of positions with the same most likely token. `rows`: which texts, "validation" or "probe".
    """

    rows: str
    texts: int
    positions: int
    kl_export: float
    kl_base: float
    kl_rounding: float
    ratio: float | None
    largest: float
    top1: float
    losses: Losses


@dataclass(frozen=True)
class Greedy:
    """Greedy answers of live model and export to `prompts` prompts.

    `tokens` are those of the live answers, `equal` those before the first difference. `parted` counts answers that differ,
    `close` those of them whose first difference is at a close call: the two best tokens of the live model are nearer than
    `tie` nats.
    """

    prompts: int
    tokens: int
    equal: int
    parted: int
    close: int
    tie: float


@dataclass(frozen=True)
class Ends:
    """Ends of answers in the texts: `places` in all, those where the `live` model chooses the end token, and those of these
    where the `export` does too. `token` is the one that the training teaches.
    """

    token: int
    places: int
    live: int
    export: int


@dataclass(frozen=True)
class Form:
    """The model in one type of weights, and what was measured on it in `runtime`; None: it was not loaded.

    `name` is the file, or "" for a folder that is one model. The first of `behaviour` decides.
    """

    name: str
    dtype: str
    bytes: int
    survival: Survival | None = None
    runtime: str | None = None
    behaviour: list[Behaviour] = field(default_factory=list)
    greedy: Greedy | None = None
    ends: Ends | None = None
    strings: int | None = None  # texts that the runtime's tokenizer splits as in the training
    most_ratio: float | None = None  # of KL(live || export) to KL(live || base) that is accepted


@dataclass(frozen=True)
class Certificate:
    """The content of export.json."""

    target: str
    base: dict[str, Any]
    adapter: dict[str, Any]
    quantization: str = "none"
    forms: list[Form] = field(default_factory=list)
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
    """Return the versions of lorafit and of the packages that an export depends on, as far as they are installed."""
    found = {"lorafit": __version__}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


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
