"""The record of a run as read from its folder, damaged or not; differences between runs; removal of a run."""

import json
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lorafit.atomic import disk_errors, read_errors
from lorafit.config import TrainConfig, read_yaml
from lorafit.errors import AdapterError, LorafitError, RunError
from lorafit.events import EvalDone, Event, Failed, Finished, Resumed, Started, StepDone
from lorafit.messages import _, labelled, listed
from lorafit.planner.effective_batch import resolve_effective_batch
from lorafit.planner.plan import Choice
from lorafit.run_folders import directory
from lorafit.run_folders.directory import LIVE, RunDir, RunInfo
from lorafit.run_folders.find_adapter import find_adapter
from lorafit.units import kind_text

Kind = TypeVar("Kind", bound=Event)
Points = list[tuple[int, float]]  # step, value
Settings = dict[str, Any]

RECENT = 20  # steps over which the last training loss is averaged


@dataclass(frozen=True)
class Record:
    """The content of a run's folder. `settings` or `plan` is empty if it cannot be read; `faults` has the reasons."""

    run: RunDir
    info: RunInfo
    settings: Settings
    plan: Settings
    events: list[Event]
    adapter: Path | None
    bytes: int
    faults: list[str]

    def of_kind(self, kind: type[Kind]) -> list[Kind]:
        """Return the events of class `kind`."""
        return [event for event in self.events if isinstance(event, kind)]

    def last(self, kind: type[Kind]) -> Kind | None:
        """Return the last event of class `kind`; None if there is none."""
        return next(reversed(self.of_kind(kind)), None)


@dataclass(frozen=True)
class SettingDifference:
    """A setting `name` that differs between two runs, or between a run and the defaults."""

    name: str
    one: object
    other: object


@dataclass(frozen=True)
class Results:
    """The results of a run; None where its events lack the value. Losses are means per target token."""

    train_loss: float | None  # mean of the last RECENT steps
    valid_loss_before: float | None
    valid_loss_after: float | None
    best_loss: float | None
    best_step: int | None
    seconds: float | None  # of all valid steps
    tokens_per_second: float | None
    peak_bytes: int | None


def read_record(run: RunDir) -> Record:
    """Read the folder of `run`. Damaged files are left out and named in `faults`. Raise DiskError without permission."""
    faults: list[str] = []
    with read_errors(run.events):
        if run.events.is_file():
            run.events.open("rb").close()
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
    """Return the settings that differ from the defaults: name, value, default."""
    default = TrainConfig(demo=settings.get("demo") is True)
    defaults = {**TrainConfig().model_dump(), "effective_batch": resolve_effective_batch(default)}
    return differences(settings, {name: defaults.get(name) for name in settings})


def differences(one: Settings, other: Settings) -> list[SettingDifference]:
    """Return where `one` and `other` differ, in the order of `one`; a missing name counts as None."""
    names = [*one, *(name for name in other if name not in one)]
    pairs = [SettingDifference(name, one.get(name), other.get(name)) for name in names]
    return [pair for pair in pairs if pair.one != pair.other]


def plan_values(plan: Settings) -> Settings:
    """Return the plain values of a plan, without lists and objects such as the reasons."""
    return {name: value for name, value in plan.items() if not isinstance(value, list | dict)}


def plan_choices(plan: Settings) -> list[dict[str, str]]:
    """Return a plan's complete decisions as setting, value and reason, in the current language."""
    found = plan.get("choices")
    keys = ("setting", "value", "reason")
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    return [vars(Choice.read(row)) for row in rows if all(isinstance(row.get(key), str) for key in keys)]


def curves(record: Record) -> dict[str, Points]:
    """Return the measured curves over the steps by name; curves without a point are left out."""
    steps, evals = record.of_kind(StepDone), record.of_kind(EvalDone)
    found = {
        "loss": _points((e.step, e.loss) for e in steps),
        "valid_loss": _points((e.step, e.loss) for e in evals),
        "lr": _points((e.step, e.lr) for e in steps),
        "tokens/s": _points((e.step, _rate(e)) for e in steps),
    }
    return {name: points for name, points in found.items() if points}


def results(record: Record) -> Results:
    """Return the results of the run."""
    steps, finished = record.of_kind(StepDone), record.last(Finished)
    losses = [value for _step, value in _points((e.step, e.loss) for e in steps)][-RECENT:]
    evals = [point for point in _points((e.step, e.loss) for e in record.of_kind(EvalDone)) if point[0] > 0]
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
    """Return the events at which training resumed after an interruption, in order."""
    return record.of_kind(Resumed)


def start_time(record: Record) -> float | None:
    """Return the time of the first start in seconds since 1970; None if unknown."""
    return next((time for e in record.events if (time := _number(e.time)) is not None), None)


def failure_text(record: Record) -> str | None:
    """Return the error text of the run's last failure; None if it started again or finished after that."""
    turns = [e for e in record.events if isinstance(e, Started | Failed | Finished)]
    last = turns[-1] if turns else None
    return last.text if isinstance(last, Failed) and isinstance(last.text, str) else None


def check_removable(record: Record) -> None:
    """Raise RunError if the run is being written, is a link, or its folder holds files that are not of a run."""
    run = record.run
    if record.info.state in LIVE:
        raise RunError(
            _("This run is still running."),
            where=run.path,
            fix=_("Wait until it has finished, or stop it: {command}").format(command=f"lorafit runs stop {run.name}"),
        )
    if run.path.is_symlink():
        raise RunError(
            _("This folder is only a link to a run, so it was not removed."),
            where=run.path,
            found=run.path.resolve(),
            fix=_("Name the folder that the link points to."),
        )
    if foreign := run.foreign_files():
        raise RunError(
            _("This folder holds files that no run wrote, so it was not removed."),
            where=run.path,
            found=listed(sorted(path.name for path in foreign)[:5]),
            fix=_("Move these files elsewhere first, or delete the folder yourself."),
        )


def remove_run_folder(record: Record) -> None:
    """Delete the whole folder of a run. Raises RunError as check_removable() does, and DiskError."""
    check_removable(record)
    run = record.run
    with run.lock(), disk_errors(run.path):
        aside = run.path.with_name(f".removed-{run.path.name}")  # no reader finds it half deleted
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
        with read_errors(path):
            plan = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RunError(_("The run has no plan yet."), where=path) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(_("Not a plan.json written by lorafit."), where=path, found=error) from None
    if not isinstance(plan, dict):
        raise RunError(_("Not a plan.json written by lorafit."), where=path, found=kind_text(plan))
    return plan


def _adapter(run: RunDir) -> Path | None:
    try:
        return find_adapter(run.path.absolute(), run.path.parent)
    except (AdapterError, OSError):
        return None


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


# A damaged line may hold numbers of any type, whatever the event's annotation.


def _points(pairs: Iterable[tuple[object, object]]) -> Points:
    numbers = [(step, _number(value)) for step, value in pairs if type(step) is int]
    return [(step, value) for step, value in numbers if value is not None]


def _rate(event: StepDone) -> float | None:
    seconds, tokens = _number(event.seconds), _number(event.tokens)
    return tokens / seconds if seconds and tokens is not None else None


def _number(value: object) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None  # type: ignore[arg-type]
