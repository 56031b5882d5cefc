"""One export, honest or with a planted fault, and what became of it."""

import contextlib
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from exports.sources import Sources
from lorafit import api
from lorafit.errors import LorafitError
from lorafit.exporters.base import ExportRequest
from lorafit.exporters.export import Exported


@dataclass(frozen=True)
class Plant:
    """A fault of the exporter: its function `name` of `owner`, a module or a class, is replaced by `make` of it."""

    owner: Any
    name: str
    make: Callable[[Any], Any]

    @contextlib.contextmanager
    def planted(self) -> Iterator[list[str]]:
        """Plant the fault for the block; yield a list that gets an entry when the faulty function is called."""
        calls: list[str] = []
        original = vars(self.owner)[self.name]
        is_property = isinstance(original, property)
        faulty = self.make(original.fget if is_property else original)

        def counted(*given: Any, **named: Any) -> Any:
            calls.append(self.name)
            return faulty(*given, **named)

        with patch.object(self.owner, self.name, property(counted) if is_property else counted):
            yield calls


@dataclass(frozen=True)
class Trial:
    """An export of the source named `source` to the target `to` with `flags`.

    `plant` is a fault of the exporter, `damage` one that is done to the finished folder, which `lorafit verify` must find.
    """

    name: str
    source: str
    to: str
    flags: dict[str, Any] = field(default_factory=dict)
    plant: Plant | None = None
    damage: Callable[[Path], None] | None = None
    refused_wish: bool = False  # no fault of the exporter, but an export that loses what was learned

    @property
    def is_faulty(self) -> bool:
        """Whether it must be refused."""
        return self.plant is not None or self.damage is not None or self.refused_wish

    @property
    def same_without_fault(self) -> str:
        """The name of the same export without a fault."""
        flags = (value if isinstance(value, str) else f"{value} {name}" if type(value) is int else name
                 for name, value in self.flags.items())  # fmt: skip
        return " ".join([f"{self.source}:", self.to, *flags])


@dataclass(frozen=True)
class Result:
    """What became of a trial: `state` is written, refused, crash (an exception without words), left or idle.

    left: refused, but something of it lies on the disk. idle: the fault's function was never called.
    """

    trial: Trial
    state: str
    said: str
    seconds: float
    exported: Exported | None = None


def run(trial: Trial, sources: Sources, folder: Path) -> Result:
    """Export below `folder`, which is empty before and after."""
    flags = {"run": [str(sources.adapter(trial.source))], **trial.flags}
    if parts := trial.flags.get("mix"):
        mix = ",".join(f"{sources.adapter(name)}={weight}" for name, weight in parts.items())
        flags |= {"run": [], "mix": mix}
    request = ExportRequest.model_validate({"to": trial.to, "output": str(folder / "out"), **flags})
    began = time.monotonic()
    state, said, exported, calls = "written", "", None, ["no function"]
    try:
        with trial.plant.planted() if trial.plant else contextlib.nullcontext(calls) as calls:
            exported = api.export(request)
        if trial.damage is not None:
            trial.damage(folder / "out")
            api.verify_export(folder / "out")
    except LorafitError as error:
        state, said = "refused", ": ".join(str(one) for one in (error.what, error.found) if one)
        if exported is None and list(folder.iterdir()):
            state = "left"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        state, said = "crash", f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
    if not calls:
        state = "idle"
    for path in folder.iterdir():
        shutil.rmtree(path)
    return Result(trial, state, " ".join(said.split()), time.monotonic() - began, exported)
