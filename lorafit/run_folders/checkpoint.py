"""How does a folder get onto the disk whole or not at all, and which checkpoint of a run is good?

A folder is written beside its place under a hidden name, gets a manifest with a digest of every file, and is renamed
once. Whoever reads believes the manifest only: neither names nor JSON types nor that a file is there.
What is in a checkpoint is the engine's and the loop's affair.
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

from lorafit.atomic import ensure_room, hidden_path, leftovers, list_folder, put_back, verify, whole_folder
from lorafit.errors import DiskError
from lorafit.messages import _

STATE = "state.json"
ROOM_SHARE = 1.1  # of the last checkpoint's size, wanted for the next one


class HasCheckpoints(Protocol):
    """All that is needed of a run (rundir.RunDir)."""

    @property
    def checkpoints(self) -> Path: ...


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint that stands complete on the disk."""

    path: Path
    bytes: int
    seconds: float


# Errors of the disk


# Whole or absent


# A run's checkpoints


def save_checkpoint(run: HasCheckpoints, step: int, write: Callable[[Path], None]) -> SavedCheckpoint:
    """Save what `write(folder)` writes as the checkpoint of `step`. Raises DiskError, and then nothing has changed."""
    start = time.perf_counter()
    target = run.checkpoints / f"step-{step:06d}"
    with whole_folder(target) as folder:
        write(folder)
        write_step(folder, step)
    return SavedCheckpoint(target, _bytes(target), time.perf_counter() - start)


def make_room(run: HasCheckpoints) -> None:
    """Raise DiskError where the next checkpoint will not fit, as the last one was large; of several an older one goes first."""
    sizes = [_bytes(path) for _step, path in _numbered(run.checkpoints)[:1]]
    if not sizes:
        return
    needed = int(sizes[0] * ROOM_SHARE)
    try:
        ensure_room(run.checkpoints, needed)
    except DiskError:
        prune(run, 1)
        ensure_room(run.checkpoints, needed)


def write_step(folder: Path, step: int) -> None:
    """Note in `folder` after which step what is in it was so."""
    (folder / STATE).write_text(json.dumps({"step": step}) + "\n", "utf-8")


def step_of(folder: Path) -> int | None:
    """What write_step() noted; None where it cannot be told."""
    try:
        state = json.loads((folder / STATE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return state["step"] if isinstance(state, dict) and type(state.get("step")) is int else None


def latest_good(run: HasCheckpoints) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest checkpoint that is whole, or None, and those newer than it with the reason why each is not."""
    put_back(run.checkpoints)
    bad: list[tuple[Path, str]] = []
    for step, path in _numbered(run.checkpoints):
        fault = verify(path) or _state_fault(path, step)
        if fault is None:
            return path, bad
        bad.append((path, fault))
    return None, bad


def discard_from(run: HasCheckpoints, step: int) -> None:
    """Delete the checkpoints of `step` and later: what is in them may be wrong."""
    for number, path in _numbered(run.checkpoints):
        if number >= step:
            _delete(path)


def prune(run: HasCheckpoints, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints and the last good one, and what dead processes left half done."""
    good, _bad = latest_good(run)
    for folder in (run.checkpoints, run.checkpoints.parent):
        put_back(folder)
        for path, _kind, _name in leftovers(folder):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    for _step, path in _numbered(run.checkpoints)[keep:]:
        if path != good:
            _delete(path)


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _numbered(checkpoints: Path) -> list[tuple[int, Path]]:
    """Folders with a checkpoint's name, newest first."""
    named = [(int(m[1]), p) for p in list_folder(checkpoints) if (m := re.fullmatch(r"step-([0-9]{6,})", p.name))]
    return sorted(((step, p) for step, p in named if p.name == f"step-{step:06d}" and p.is_dir()), reverse=True)


def _state_fault(path: Path, step: int) -> str | None:
    return None if step_of(path) == step else _("{file} is not that of step {step}").format(file=STATE, step=step)


def _delete(path: Path) -> None:
    """Take away the name first, so that nobody meets a checkpoint that is half deleted."""
    aside = hidden_path(path, "old")
    with contextlib.suppress(OSError):
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
