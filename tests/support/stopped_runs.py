"""Runs as they were when they died, made from finished ones."""

import shutil
from pathlib import Path

from lorafit.events import EventLog, read_events
from lorafit.run_folders.directory import RunDir


def as_it_died(finished: RunDir, folder: Path, step: int) -> RunDir:
    """A copy of a finished run of checkpoints every two steps, as it was when it died after `step`."""
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
    return (folder / "adapter_model.safetensors").read_bytes()
