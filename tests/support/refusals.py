"""Helpers for the tests of bad input: incomplete model folders, and the results of a run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from lorafit.run_folders.directory import RunDir

Refused = Callable[..., str]
Words = list[str]


def without(model: Path, folder: Path, *names: str) -> Path:
    """Copy `model` to `folder` without the files `names`, and return `folder`."""
    shutil.copytree(model, folder)
    for name in names:
        (folder / name).unlink()
    return folder


def change_config(folder: Path, **changes: object) -> None:
    """Change values in config.json of the model in `folder`."""
    facts = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(facts | changes), "utf-8")


def the_run(output: Path) -> RunDir:
    """Return the only run in `output`."""
    (path,) = output.iterdir()
    return RunDir(path)


def adapter_bytes(output: Path) -> bytes:
    """Return the bytes of the final adapter's weights file of the only run in `output`."""
    return (the_run(output).final_model / "adapter_model.safetensors").read_bytes()
