"""What came back from another machine? A bundle, a zip or tar of folders, or a folder: checked, and put among the runs.

Nothing is taken over that its digests do not vouch for, or whose adapter cannot be read.
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
from lorafit.run_folders import directory
from lorafit.run_folders.adapter import read_adapter
from lorafit.run_folders.checkpoint import latest_good
from lorafit.run_folders.directory import RunDir
from lorafit.transfer import archive
from lorafit.transfer.bundle import KEPT, carry_adapter
from lorafit.transfer.unbundle import is_bundle, unbundle

ADAPTERS = ("final_model", "best_model")
TEXTS = ("plan.json", "machine.json", "events.jsonl", "report.html")


@dataclass(frozen=True)
class Fetched:
    """A run that came. `finished`: there is an adapter to try; else it is to be gone on with.

    `base` is the base model's name; `base_is_here` False where it names a folder that this disk does not have.
    """

    run: RunDir
    finished: bool
    base: str | None
    base_is_here: bool


def fetch(path: Path, output_dir: Path) -> list[Fetched]:
    """All runs in `path`, put into `output_dir`. Raises RunError where there is none or one is damaged, and DiskError."""
    if not path.exists():
        raise RunError(_("There is nothing of this name."), where=path, fix=_("Give a zip, a tar.gz or a folder."))
    ensure_writable(output_dir)
    with disk_errors(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".fetching-") as scratch:
        fetched = [_fetched(run) for run in _take(path, output_dir, Path(scratch))]
    if not fetched:
        raise RunError(
            _("There is no run and no adapter in it."),
            where=path,
            fix=_("Give what the notebook or job wrote: result.zip, a run's folder, or its final_model."),
        )
    return fetched


def _take(path: Path, output_dir: Path, scratch: Path) -> Iterator[RunDir]:
    if is_bundle(path):
        yield unbundle(path, output_dir).run
    elif archive.is_archive(path):
        folder = scratch / "out"
        folder.mkdir()
        archive.unpack(path, folder)
        yield from _of_folder(folder, output_dir, scratch, path)
    elif path.is_dir():
        yield from _of_folder(path, output_dir, scratch, path)


def _of_folder(folder: Path, output_dir: Path, scratch: Path, named: Path) -> Iterator[RunDir]:
    """Bundles in it; else runs; else an adapter."""
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
            yield from _of_folder(inside, output_dir, scratch / f"deeper-{number}", named)
        return
    runs = [path.parent for path in found if path.name == "config.yaml"]
    for run in runs:
        yield _carry_run(RunDir(run), output_dir, scratch)
    if not runs and (adapter := next((p.parent for p in found if p.name == "adapter_config.json"), None)):
        yield _carry_adapter(adapter, output_dir, scratch, named)


def _walk(folder: Path) -> Iterator[Path]:
    """Files below `folder`, through no link, in order."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(place) / name for name in sorted(files) if not (Path(place) / name).is_symlink())


def _carry_run(run: RunDir, output_dir: Path, scratch: Path) -> RunDir:
    """A copy of what tells of `run`, and of its good adapters; checkpoints too where it is not finished."""
    inside = RunDir(scratch / "run")
    inside.path.mkdir(parents=True)
    settings = {name: value for name, value in read_yaml(run.config).items() if name in KEPT}
    config = make_config(settings, where=run.config)
    write_yaml(config, inside.config)
    for name in TEXTS:
        if (run.path / name).is_file():
            shutil.copyfile(run.path / name, inside.path / name)
    folders = [run.path / name for name in ADAPTERS if (run.path / name).is_dir()]
    if not run.final_model.is_dir() and (checkpoint := latest_good(run)[0]):
        folders.append(checkpoint)
    for folder in folders:
        carry_adapter(folder, inside.path / folder.relative_to(run.path), config.model_name, {})
    if not folders:
        raise RunError(_("This run has neither an adapter nor a good checkpoint."), where=run.path)
    return _place(inside, output_dir, run.name)


def _carry_adapter(folder: Path, output_dir: Path, scratch: Path, named: Path) -> RunDir:
    """An adapter alone, as the final model of a run of which nothing else is known."""
    inside = RunDir(scratch / "run")
    inside.path.mkdir(parents=True)
    carry_adapter(folder, inside.final_model, read_adapter(folder)[0].base_model or "", {})
    inside.config.write_text("{}\n", "utf-8")
    name = named.name.split(".")[0] if folder.name in (*ADAPTERS, "out") else folder.name
    return _place(inside, output_dir, name or "fetched")


def _place(inside: RunDir, output_dir: Path, name: str) -> RunDir:
    run = directory.take_name(output_dir, name)
    with disk_errors(run.path):
        inside.path.rename(run.path)
    return run


def _fetched(run: RunDir) -> Fetched:
    """What can be said of a run that is in its place. Raises AdapterError where its adapter cannot be read."""
    if not run.final_model.is_dir():
        return Fetched(run, False, None, True)
    base = read_adapter(run.final_model)[0].base_model
    known = base is not None and (base == "demo" or not is_local(base) or Path(base).expanduser().is_dir())
    return Fetched(run, True, base, known)
