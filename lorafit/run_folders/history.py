"""What has become of a run, and what sets two apart? Read from its folder, as far as that is whole; and how it is removed."""

import json
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lorafit.atomic import disk_errors
from lorafit.config import TrainConfig, read_yaml, resolve_effective_batch
from lorafit.errors import AdapterError, LorafitError, RunError
from lorafit.events import EvalDone, Event, Failed, Finished, Resumed, Started, StepDone
from lorafit.messages import _, labelled, listed
from lorafit.planner.plan import Choice
from lorafit.run_folders import directory
from lorafit.run_folders.directory import RunDir, RunInfo

Kind = TypeVar("Kind", bound=Event)
Points = list[tuple[int, float]]  # step, value
Settings = dict[str, Any]

RECENT = 20  # steps that the last training loss is a mean over


@dataclass(frozen=True)
class Record:
    """A run as its folder tells it; empty where nothing could be read, and `faults` says why."""

    run: RunDir
    info: RunInfo
    settings: Settings
    plan: Settings
    events: list[Event]
    adapter: Path | None
    bytes: int
    faults: list[str]

    def of(self, kind: type[Kind]) -> list[Kind]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def last(self, kind: type[Kind]) -> Kind | None:
        return next(reversed(self.of(kind)), None)


@dataclass(frozen=True)
class SettingDifference:
    """A name that two runs, or a run and the defaults, give different values."""

    name: str
    one: object
    other: object


@dataclass(frozen=True)
class Results:
    """What came of a run; None where it does not tell. Losses are means per target token."""

    train_loss: float | None  # over the last steps
    valid_loss_before: float | None
    valid_loss_after: float | None
    best_loss: float | None
    best_step: int | None
    seconds: float | None  # of all steps that hold
    tokens_per_second: float | None
    peak_bytes: int | None


def read_record(run: RunDir) -> Record:
    """Everything that the folder of `run` tells; what is damaged is named and left out."""
    faults: list[str] = []
    return Record(
        run=run,
        info=directory.info_of(run),
        settings=_attempt(faults, lambda: read_yaml(run.config)),
        plan=_attempt(faults, lambda: _read_plan(run.plan)),
        events=directory.events_of(run),
        adapter=_adapter(run),
        bytes=_bytes(run.path),
        faults=faults,
    )


def changed_settings(settings: Settings) -> list[SettingDifference]:
    """The settings that are not the defaults: name, value, default."""
    default = TrainConfig(demo=settings.get("demo") is True)
    defaults = {**TrainConfig().model_dump(), "effective_batch": resolve_effective_batch(default)}
    return differences(settings, {name: defaults.get(name) for name in settings})


def differences(one: Settings, other: Settings) -> list[SettingDifference]:
    """Where the two differ, in the order of `one`; a name that is not there counts as None."""
    names = [*one, *(name for name in other if name not in one)]
    pairs = [SettingDifference(name, one.get(name), other.get(name)) for name in names]
    return [pair for pair in pairs if pair.one != pair.other]


def planned(plan: Settings) -> Settings:
    """The entries of a plan without the reasons."""
    return {name: value for name, value in plan.items() if not isinstance(value, list | dict)}


def choices(plan: Settings) -> list[dict[str, str]]:
    """A plan's decisions that are whole: setting, value, reason, in the language spoken now."""
    found = plan.get("choices")
    keys = ("setting", "value", "reason")
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    return [vars(Choice.read(row)) for row in rows if all(isinstance(row.get(key), str) for key in keys)]


def curves(record: Record) -> dict[str, Points]:
    """What was measured, over the steps: those of the curves that have a point."""
    steps, evals = record.of(StepDone), record.of(EvalDone)
    found = {
        "loss": _points((e.step, e.loss) for e in steps),
        "valid_loss": _points((e.step, e.loss) for e in evals),
        "lr": _points((e.step, e.lr) for e in steps),
        "tokens/s": _points((e.step, _rate(e)) for e in steps),
    }
    return {name: points for name, points in found.items() if points}


def results(record: Record) -> Results:
    """What came of the run."""
    steps, finished = record.of(StepDone), record.last(Finished)
    losses = [value for _step, value in _points((e.step, e.loss) for e in steps)][-RECENT:]
    evals = [point for point in _points((e.step, e.loss) for e in record.of(EvalDone)) if point[0] > 0]
    best = min(evals, key=lambda point: point[1], default=(None, None))
    seconds = sum(value for _step, value in _points((e.step, e.seconds) for e in steps))
    tokens = sum(value for _step, value in _points((e.step, e.tokens) for e in steps))
    return Results(
        train_loss=sum(losses) / len(losses) if losses else None,
        valid_loss_before=record.info.valid_loss_before,
        valid_loss_after=record.info.valid_loss_after,
        best_loss=best[1] if finished is None else _number(finished.best_loss),
        best_step=best[0] if finished is None else finished.best_step,
        seconds=seconds or None,
        tokens_per_second=tokens / seconds if seconds else None,
        peak_bytes=max((e.peak_bytes for e in steps if isinstance(e.peak_bytes, int)), default=None),
    )


def restarts(record: Record) -> list[Resumed]:
    """The times that training went on after an interruption, the first first."""
    return record.of(Resumed)


def begun(record: Record) -> float | None:
    """When it was started first, in seconds since 1970."""
    return next((time for e in record.events if (time := _number(e.time)) is not None), None)


def why_not_finished(record: Record) -> str | None:
    """What the user was told when the run failed, unless it went on after that."""
    turns = [e for e in record.events if isinstance(e, Started | Failed | Finished)]
    last = turns[-1] if turns else None
    return last.text if isinstance(last, Failed) and isinstance(last.text, str) else None


def check_removable(record: Record) -> None:
    """Raise RunError for a run that is written just now, or a folder that holds what no run has."""
    run = record.run
    if record.info.state == "running":
        raise RunError(
            _("This run is going on."), where=run.path, fix=_("Wait for it, or stop it with Ctrl-C where it runs.")
        )
    if run.path.is_symlink():
        raise RunError(
            _("This is a link to a run."), where=run.path, found=run.path.resolve(), fix=_("Name the folder itself.")
        )
    if foreign := run.foreign():
        raise RunError(
            _("Other things than a run's lie in this folder, so it is not removed."),
            where=run.path,
            found=listed(sorted(path.name for path in foreign)[:5]),
            fix=_("Move them elsewhere first, or delete the folder yourself."),
        )


def remove_run_folder(record: Record) -> None:
    """Delete the whole folder of a run. Raises RunError as check_removable() does, and DiskError."""
    check_removable(record)
    run = record.run
    with run.lock(), disk_errors(run.path):
        aside = run.path.with_name(f".removed-{run.path.name}")  # so that nobody meets it half deleted
        shutil.rmtree(run.path.rename(aside))


def _attempt(faults: list[str], read: Callable[[], Settings]) -> Settings:
    try:
        return read()
    except LorafitError as error:
        name = Path(error.where or "").name
        faults.append(labelled(name, error.brief) if name else error.brief)
        return {}


def _read_plan(path: Path) -> Settings:
    try:
        plan = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(_("This is not a plan."), where=path, found=error) from None
    if not isinstance(plan, dict):
        raise RunError(_("This is not a plan."), where=path, found=type(plan).__name__)
    return plan


def _adapter(run: RunDir) -> Path | None:
    try:
        return directory.find_adapter(run.path)
    except (AdapterError, OSError):
        return None


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


# A damaged line's numbers may be of any type, whatever the event's annotation.


def _points(pairs: Iterable[tuple[object, object]]) -> Points:
    numbers = [(step, _number(value)) for step, value in pairs if type(step) is int]
    return [(step, value) for step, value in numbers if value is not None]


def _rate(event: StepDone) -> float | None:
    seconds, tokens = _number(event.seconds), _number(event.tokens)
    return tokens / seconds if seconds and tokens is not None else None


def _number(value: object) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None  # type: ignore[arg-type]
