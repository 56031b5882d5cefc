"""Interrupted runs, made from finished runs."""

import shutil
from pathlib import Path

from lorafit.events import EventLog, read_events
from lorafit.run_folders.directory import RunDir


def as_it_died(finished: RunDir, folder: Path, step: int) -> RunDir:
    """Copy a finished run with checkpoints every two steps to `folder`, in its state after it died at `step`."""
    run = RunDir(folder / finished.name)
    shutil.copytree(finished.path, run.path)
    late = [path for path in run.checkpoints.iterdir() if path.name > f"step-{step:06d}"]
    for path in (run.final_model, run.best_model, *late):
        shutil.rmtree(path)
    events = [event for event in read_events(run.events) if event.step <= step]
    run.events.unlink()
    with EventLog(run.events) as log:
        for event in events:
            log.write(event)
    return run


def weights(folder: Path) -> bytes:
    """Return the bytes of the adapter's weights file in `folder`."""
    return (folder / "adapter_model.safetensors").read_bytes()
