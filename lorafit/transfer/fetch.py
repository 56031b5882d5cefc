"""Import of runs from another machine: a bundle, a zip or tar.gz of folders, or a folder.

Digests are verified where there is a manifest, and an adapter must be readable; otherwise the import is refused.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorafit.atomic import disk_errors, ensure_writable
from lorafit.config import make_config, read_yaml, write_yaml
from lorafit.errors import RunError
from lorafit.messages import _
from lorafit.models.hub import is_local
from lorafit.paths import user_path
from lorafit.run_folders import directory
from lorafit.run_folders.adapter import read_adapter
from lorafit.run_folders.checkpoint import latest_good
from lorafit.run_folders.directory import RunDir
from lorafit.transfer import archive
from lorafit.transfer.bundle import PORTABLE_SETTINGS, copy_adapter
from lorafit.transfer.unbundle import is_bundle, unbundle

ADAPTERS = ("final_model", "best_model")
TEXTS = ("plan.json", "machine.json", "origins.json", "events.jsonl", "report.html")


@dataclass(frozen=True)
class Fetched:
    """An imported run. `finished` means that it has a final adapter; otherwise it can be resumed.

    `base` is the name of the base model of a finished run. `base_exists` is False if `base` is unknown or names a
    folder that does not exist on this disk.
    """

    run: RunDir
    finished: bool
    base: str | None
    base_exists: bool


def fetch(path: Path, output_dir: Path) -> list[Fetched]:
    """Import all runs in `path` into `output_dir`. Raises RunError if there is none or one is damaged, or DiskError."""
    if not path.exists():
        raise RunError(_("No such file or folder."), where=path, fix=_("Give a zip, a tar.gz, or a folder."))
    ensure_writable(output_dir)
    with disk_errors(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".fetching-") as scratch:
        fetched = [_fetched(run) for run in _take(path, output_dir, Path(scratch))]
    if not fetched:
        raise RunError(
            _("No run or adapter found."),
            where=path,
            fix=_("Give the output of the notebook or job: result.zip, a run folder, or its final_model."),
        )
    return fetched


def _take(path: Path, output_dir: Path, scratch: Path) -> Iterator[RunDir]:
    if is_bundle(path):
        yield unbundle(path, output_dir).run
    elif archive.is_archive(path):
        folder = scratch / "out"
        folder.mkdir()
        archive.unpack(path, folder)
        yield from _import_folder(folder, output_dir, scratch, path)
    elif path.is_dir():
        yield from _import_folder(path, output_dir, scratch, path)


def _import_folder(folder: Path, output_dir: Path, scratch: Path, named: Path) -> Iterator[RunDir]:
    """Import the bundles in `folder`; else SageMaker's inner archives; else the runs; else one adapter."""
    found = list(_walk(folder))
    if bundles := [path for path in found if is_bundle(path)]:
        for path in bundles:
            yield unbundle(path, output_dir).run
        return
    if packed := [path for path in found if path.name in ("model.tar.gz", "output.tar.gz")]:
        for number, path in enumerate(packed):
            inside = scratch / f"out-{number}"
            inside.mkdir(parents=True)
            archive.unpack(path, inside)
            yield from _import_folder(inside, output_dir, scratch / f"deeper-{number}", named)
        return
    runs = [path.parent for path in found if path.name == "config.yaml"]
    for run in runs:
        yield _import_run(RunDir(run), output_dir, scratch)
    if not runs and (adapter := next((p.parent for p in found if p.name == "adapter_config.json"), None)):
        yield _import_adapter(adapter, output_dir, scratch, named)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below `folder` in sorted order, without following links."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(place) / name for name in sorted(files) if not (Path(place) / name).is_symlink())


def _import_run(run: RunDir, output_dir: Path, scratch: Path) -> RunDir:
    """Copy the settings, records and adapters of `run`, and for an unfinished run the newest good checkpoint.

    Raises RunError if there is neither an adapter nor a good checkpoint.
    """
    inside = RunDir(scratch / "run")
    inside.path.mkdir(parents=True)
    settings = {name: value for name, value in read_yaml(run.config).items() if name in PORTABLE_SETTINGS}
    config = make_config(settings, where=run.config)
    write_yaml(config, inside.config)
    for name in TEXTS:
        if (run.path / name).is_file():
            shutil.copyfile(run.path / name, inside.path / name)
    folders = [run.path / name for name in ADAPTERS if (run.path / name).is_dir()]
    if not run.final_model.is_dir() and (checkpoint := latest_good(run)[0]):
        folders.append(checkpoint)
    for folder in folders:
        copy_adapter(folder, inside.path / folder.relative_to(run.path), config.model_name, {})
    if not folders:
        raise RunError(_("The run has neither an adapter nor an intact checkpoint."), where=run.path)
    return _place(inside, output_dir, run.name)


def _import_adapter(folder: Path, output_dir: Path, scratch: Path, named: Path) -> RunDir:
    """Import an adapter without a run, as the final model of a run with empty settings."""
    inside = RunDir(scratch / "run")
    inside.path.mkdir(parents=True)
    copy_adapter(folder, inside.final_model, read_adapter(folder)[0].base_model or "", {})
    inside.config.write_text("{}\n", "utf-8")
    name = named.name.split(".")[0] if folder.name in (*ADAPTERS, "out") else folder.name
    return _place(inside, output_dir, name or "fetched")


def _place(inside: RunDir, output_dir: Path, name: str) -> RunDir:
    run = directory.create_unique_folder(output_dir, name)
    with disk_errors(run.path):
        inside.path.rename(run.path)
    return run


def _fetched(run: RunDir) -> Fetched:
    """Describe a run that is in its final folder. Raises AdapterError if its adapter cannot be read."""
    if not run.final_model.is_dir():
        return Fetched(run, False, None, True)
    base = read_adapter(run.final_model)[0].base_model
    known = base is not None and (base == "demo" or not is_local(base) or user_path(base).is_dir())
    return Fetched(run, True, base, known)
