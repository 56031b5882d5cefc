"""A run's folder: its file names, the list of all runs, and the lock of its one writer.

A run is a folder with a config.yaml or an events.jsonl. This module knows the names of the files. It reads only the
saved config and, damaged or not, what a list of runs shows: plan.json and events.jsonl.
"""

import contextlib
import difflib
import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.atomic import HIDDEN, disk_error
from lorafit.config import TrainConfig, make_config, read_yaml
from lorafit.errors import ConfigError, RunError
from lorafit.events import (
    Continued,
    EvalDone,
    Event,
    Failed,
    Finished,
    Paused,
    Resumed,
    Started,
    StepDone,
    Stopped,
    read_events,
)
from lorafit.messages import _, listed
from lorafit.paths import user_path

STAMP = re.compile(r".*-([0-9]{8}_[0-9]{6})(?:_([0-9]+))?")
ORPHAN_SECONDS = 60.0  # time of a worker for its step and its checkpoint after its supervisor is gone
LATEST = "latest"  # the name of the newest run
LIVE = ("running", "paused")  # the states of a run that a process is writing
NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # from network disks without locks


@dataclass(frozen=True)
class RunDir:
    """The folder `path` of a run, with a property for each of its files and subfolders."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def machine(self) -> Path:
        return self.path / "machine.json"

    @property
    def origins(self) -> Path:
        """The digests of the base model, the data and the other inputs (origins.py)."""
        return self.path / "origins.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def final_model(self) -> Path:
        return self.path / "final_model"

    @property
    def best_model(self) -> Path:
        return self.path / "best_model"

    @property
    def rejects(self) -> Path:
        return self.path / "rejects.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def inputs(self) -> Path:
        """Files that came with a run that was moved here: data, chat template."""
        return self.path / "inputs"

    @property
    def worker_log(self) -> Path:
        """The worker's stderr during training."""
        return self.path / "worker.log"

    @property
    def lock_file(self) -> Path:
        return self.path / "lock"

    @property
    def order(self) -> Path:
        """The user's order to the running training (orders.py)."""
        return self.path / "order.json"

    @property
    def comparison(self) -> Path:
        """The page of `lorafit compare`."""
        return self.path / "compare.html"

    def foreign_files(self) -> list[Path]:
        """Return the files and folders that do not belong to a run."""
        files = (
            self.config,
            self.plan,
            self.machine,
            self.origins,
            self.events,
            self.rejects,
            self.report,
            self.worker_log,
            self.lock_file,
            self.order,
            self.comparison,
        )
        folders = (self.logs, self.checkpoints, self.final_model, self.best_model, self.inputs)
        own = {path.name for path in files + folders} | {".DS_Store"}
        return [p for p in sorted(self.path.iterdir()) if p.name not in own and not HIDDEN.fullmatch(p.name)]

    @contextlib.contextmanager
    def lock(self, owner: int | None = None) -> Iterator[None]:
        """Hold the lock of this run's one writer within the block.

        `owner` is the process ID to write into the lock file; None: this process.
        Raises RunError with the other writer's process ID if there is one, and DiskError.
        """
        try:
            file = self.lock_file.open("a+", encoding="utf-8")
        except OSError as error:
            raise disk_error(error, self.lock_file) from error
        with file:
            if not _try_lock(file.fileno()):
                file.seek(0)
                raise RunError(
                    _("Another process is writing to this run folder."),
                    where=self.path,
                    found=_("process {pid}").format(pid=file.read(20).strip() or "?"),
                    fix=_("Wait until that process has finished, or press Ctrl-C in its terminal."),
                )
            file.truncate(0)
            file.write(f"{owner or os.getpid()}\n")
            file.flush()
            yield

    def wait_for_orphan(self) -> None:
        """Wait for a writer whose supervisor is gone, at most ORPHAN_SECONDS: it is still saving its last step."""
        deadline = time.monotonic() + ORPHAN_SECONDS
        while _is_running(self) and not _is_alive(self.owner()) and time.monotonic() < deadline:
            time.sleep(0.1)

    def owner(self) -> int | None:
        """Return the process ID in the lock file; None if there is none."""
        try:
            return int(self.lock_file.read_text("utf-8")[:20])
        except (OSError, ValueError):
            return None


@dataclass(frozen=True)
class RunInfo:
    """An entry in the list of runs; None where the run's files lack the value. Losses are means per token."""

    name: str
    path: Path
    model: str | None
    state: str  # finished | running | paused | stopped | interrupted
    step: int
    steps: int | None
    loss: float | None
    valid_loss_before: float | None
    valid_loss_after: float | None


def create(output_dir: Path, model_type: str) -> RunDir:
    """Create the folder `<model_type>-lora-<YYYYmmdd_HHMMSS>`, with `_2` and so on if it exists. Raises DiskError."""
    kind = re.sub(r"[^a-z0-9_.]+", "_", model_type.lower()).strip("._") or "model"
    return create_unique_folder(output_dir, f"{kind}-lora-{time.strftime('%Y%m%d_%H%M%S')}")


def create_unique_folder(output_dir: Path, name: str) -> RunDir:
    """Create an empty folder `name`, with `_2` and so on if it exists. Raises DiskError."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        return RunDir(_new_folder(output_dir, name))
    except OSError as error:
        raise disk_error(error, output_dir) from error


def discard(run: RunDir) -> None:
    """Delete the folder of a run that completed no step. Errors are ignored."""
    shutil.rmtree(run.path, ignore_errors=True)


def latest_run(output_dir: Path) -> RunDir | None:
    """Return the run that was started last, by the time in its name, else its folder's time; None if there is none."""
    return max(all_runs(output_dir), key=_start_time, default=None)


def find_run(name: str, output_dir: Path) -> RunDir:
    """Return the run `name`: a path, a name in `output_dir`, or "" or "latest" for the latest. Raises RunError."""
    if name in ("", LATEST):
        newest = latest_run(output_dir)
        if newest is None:
            raise RunError(_("No runs yet."), where=output_dir, fix=_("Start a run with `lorafit train`."))
        return newest
    for path in (user_path(name), output_dir / name):
        if _is_run(path):
            return RunDir(path)
    names = [run.name for run in all_runs(output_dir)]
    near = difflib.get_close_matches(Path(name).name, names, n=3, cutoff=0.5)
    raise RunError(
        _("Run not found."),
        where=name,
        found=_("not a run folder (it would contain config.yaml)") if user_path(name).exists() else None,
        fix=_("Did you mean {names}?").format(names=listed(near))
        if near
        else _("Run `lorafit runs` to list all runs."),
    )


def list_runs(output_dir: Path) -> list[RunInfo]:
    """Return the list entries of all runs in `output_dir`, the latest first."""
    return [info_of(run) for run in sorted(all_runs(output_dir), key=_start_time, reverse=True)]


def info_of(run: RunDir) -> RunInfo:
    """Return the list entry of `run`."""
    events = events_of(run)
    started = next((e for e in reversed(events) if isinstance(e, Started)), None)
    finished = next((e for e in reversed(events) if isinstance(e, Finished)), None)
    evals = [e.loss for e in events if isinstance(e, EvalDone)]
    losses = [e.loss for e in events if isinstance(e, StepDone)]
    return RunInfo(
        name=run.name,
        path=run.path,
        model=_text(started.model) if started else None,
        state=_state(run, events),
        step=_whole(events[-1].step) or 0 if events else 0,
        steps=_planned_steps(run) or (_whole(started.steps) if started else None),
        loss=_number(losses[-1]) if losses else None,
        valid_loss_before=_number(finished.valid_loss_before if finished else evals[0] if evals else None),
        valid_loss_after=_number(finished.valid_loss_after if finished else evals[-1] if evals[1:] else None),
    )


def events_of(run: RunDir) -> list[Event]:
    """Return the valid events of `run`; an empty list if more than single lines of the file are damaged."""
    try:
        return read_events(run.events)
    except (OSError, TypeError, ValueError, AttributeError, RecursionError):
        return []


def _new_folder(output_dir: Path, name: str) -> Path:
    # Names are compared without case: on a Mac, or copied to one, "Llama" and "llama" are one folder.
    taken = {path.name.casefold() for path in output_dir.iterdir()}
    number = 1
    while True:
        path = output_dir / (name if number == 1 else f"{name}_{number}")
        if path.name.casefold() not in taken:
            with contextlib.suppress(FileExistsError):  # another process created it first
                path.mkdir()
                return path
        number += 1


def _is_run(path: Path) -> bool:
    return RunDir(path).config.is_file() or RunDir(path).events.is_file()


def all_runs(output_dir: Path) -> list[RunDir]:
    """Return all runs in `output_dir`, sorted by name."""
    try:
        return [RunDir(path) for path in sorted(output_dir.iterdir()) if _is_run(path)]
    except OSError:
        return []


def _start_time(run: RunDir) -> tuple[str, int]:
    stamp = STAMP.fullmatch(run.name)
    if stamp:
        return stamp[1], int(stamp[2] or 1)
    return time.strftime("%Y%m%d_%H%M%S", time.localtime(run.path.stat().st_mtime)), 1


def _try_lock(descriptor: int, shared: bool = False) -> bool:
    """Try to lock; return whether it worked. A list of runs locks for a moment, so an exclusive lock is retried."""
    for _attempt in range(1 if shared else 5):
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.0 if shared else 0.05)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return True
            raise
    return False


def _is_running(run: RunDir) -> bool:
    try:
        with run.lock_file.open("r", encoding="utf-8") as file:
            return not _try_lock(file.fileno(), shared=True)
    except OSError:
        return False


def _state(run: RunDir, events: list[Event]) -> str:
    turns = [e for e in events if isinstance(e, Started | Resumed | Stopped | Failed | Finished)]
    if turns and isinstance(turns[-1], Finished):
        return "finished"
    if _is_running(run):
        waits = [isinstance(e, Paused) for e in events if isinstance(e, Started | Paused | Continued)]
        return "paused" if waits and waits[-1] else "running"
    return "stopped" if turns and isinstance(turns[-1], Stopped) else "interrupted"


def _is_alive(pid: int | None) -> bool:
    if pid is None:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _planned_steps(run: RunDir) -> int | None:
    try:
        plan = json.loads(run.plan.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return _whole(plan.get("steps")) if isinstance(plan, dict) else None


# A damaged line may hold a value of any type, whatever the event's annotation.


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: object) -> int | None:
    return value if type(value) is int else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def saved_config(run: RunDir) -> TrainConfig:
    """Return the settings that `run` was started with. Raises ConfigError."""
    return make_config(saved_settings(run), where=run.config)


def saved_settings(run: RunDir) -> dict[str, Any]:
    """Return the settings in the file of `run`, and none else. Raises ConfigError."""
    try:
        settings = read_yaml(run.config)
    except ConfigError as error:
        error.fix = _("Restore config.yaml of the run from a copy or a bundle, or start a new run.")
        raise
    make_config(settings, where=run.config)
    return settings
