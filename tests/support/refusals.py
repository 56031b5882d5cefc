"""What do the tests of bad input share? Folders that lack something, and what a run left behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from lorafit.run_folders.directory import RunDir

Refused = Callable[..., str]
Words = list[str]


def without(model: Path, folder: Path, *names: str) -> Path:
    """A copy of `model` in `folder` that lacks the files `names`."""
    shutil.copytree(model, folder)
    for name in names:
        (folder / name).unlink()
    return folder


def change_config(folder: Path, **changes: object) -> None:
    facts = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(facts | changes), "utf-8")


def the_run(output: Path) -> RunDir:
    (path,) = output.iterdir()
    return RunDir(path)


def adapter_bytes(output: Path) -> bytes:
    return (the_run(output).final_model / "adapter_model.safetensors").read_bytes()
