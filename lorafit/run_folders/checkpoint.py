"""A run's checkpoints: writing, verification, pruning, and the search for the newest valid one.

A checkpoint is written under a hidden name, gets a manifest with a digest of every file, and is renamed once.
Readers trust only the manifest: a folder's name, a JSON type or the presence of a file proves nothing.
The engine and the training loop decide what a checkpoint contains.
"""

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lorafit.atomic import (
    atomic_folder,
    ensure_disk_space,
    hidden_path,
    leftovers,
    list_folder,
    restore_set_aside,
    verify,
)
from lorafit.errors import DiskError
from lorafit.messages import _

STATE = "state.json"
ROOM_SHARE = 1.1  # free space wanted for the next checkpoint, as a multiple of the last one's size


class HasCheckpoints(Protocol):
    """The part of a run that this module needs (directory.RunDir)."""

    @property
    def checkpoints(self) -> Path: ...


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint on disk: its size in bytes, and the seconds that it took to write."""

    path: Path
    bytes: int
    seconds: float


def save_checkpoint(run: HasCheckpoints, step: int, write: Callable[[Path], None]) -> SavedCheckpoint:
    """Save what `write(folder)` writes as the checkpoint of `step`. If it raises DiskError, the run is unchanged."""
    start = time.perf_counter()
    target = run.checkpoints / f"step-{step:06d}"
    with atomic_folder(target, parents=False) as folder:
        write(folder)
        write_step(folder, step)
    return SavedCheckpoint(target, _bytes(target), time.perf_counter() - start)


def make_room(run: HasCheckpoints) -> None:
    """Raise DiskError if the next checkpoint does not fit, judged by the last one's size.

    Older checkpoints are deleted first if space is short.
    """
    sizes = [_bytes(path) for _step, path in _numbered(run.checkpoints)[:1]]
    if not sizes:
        return
    needed = int(sizes[0] * ROOM_SHARE)
    try:
        ensure_disk_space(run.checkpoints, needed)
    except DiskError:
        prune(run, 1)
        ensure_disk_space(run.checkpoints, needed)


def write_step(folder: Path, step: int) -> None:
    """Write state.json into `folder`: the content is the state after `step`."""
    (folder / STATE).write_text(json.dumps({"step": step}) + "\n", "utf-8")


def step_of(folder: Path) -> int | None:
    """Return the step that write_step() wrote; None if it cannot be read."""
    try:
        state = json.loads((folder / STATE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return state["step"] if isinstance(state, dict) and type(state.get("step")) is int else None


def latest_good(run: HasCheckpoints) -> tuple[Path | None, list[tuple[Path, str]]]:
    """Return the newest valid checkpoint or None, and the newer invalid ones with the reason for each."""
    restore_set_aside(run.checkpoints)
    bad: list[tuple[Path, str]] = []
    for step, path in _numbered(run.checkpoints):
        fault = verify(path) or _state_fault(path, step)
        if fault is None:
            return path, bad
        bad.append((path, fault))
    return None, bad


def discard_from(run: HasCheckpoints, step: int) -> None:
    """Delete the checkpoints of `step` and later, because their content may be wrong."""
    for number, path in _numbered(run.checkpoints):
        if number >= step:
            _delete(path)


def prune(run: HasCheckpoints, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints and the newest valid one, and unfinished files of dead processes."""
    good, _bad = latest_good(run)
    for folder in (run.checkpoints, run.checkpoints.parent):
        restore_set_aside(folder)
        for path, _kind, _name in leftovers(folder):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    for _step, path in _numbered(run.checkpoints)[keep:]:
        if path != good:
            _delete(path)


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _numbered(checkpoints: Path) -> list[tuple[int, Path]]:
    """Return step and path of the folders that are named like a checkpoint, newest first."""
    named = [(int(m[1]), p) for p in list_folder(checkpoints) if (m := re.fullmatch(r"step-([0-9]{6,})", p.name))]
    return sorted(((step, p) for step, p in named if p.name == f"step-{step:06d}" and p.is_dir()), reverse=True)


def _state_fault(path: Path, step: int) -> str | None:
    return None if step_of(path) == step else _("{file} is not from step {step}").format(file=STATE, step=step)


def _delete(path: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that no reader finds it half deleted."""
    aside = hidden_path(path, "old")
    with contextlib.suppress(OSError):
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
