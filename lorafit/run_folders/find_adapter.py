"""The search for an adapter by the name of a run, by `latest`, or by a path."""

import difflib
from pathlib import Path

from lorafit.atomic import restore_set_aside
from lorafit.errors import AdapterError
from lorafit.messages import _, clauses, labelled, listed
from lorafit.paths import user_path
from lorafit.run_folders.checkpoint import latest_good
from lorafit.run_folders.directory import LATEST, RunDir, all_runs, find_run


def named_folder(name: str, output_dir: Path) -> Path:
    """Return the folder that `name` means: a path, else a run in `output_dir` or a folder of it, or `latest`."""
    path = user_path(name)
    if path.exists() or path.is_absolute():
        return path
    if name == LATEST:
        return find_run(LATEST, output_dir).path
    return output_dir / path if (output_dir / path).is_dir() else path


def find_adapter(name: str | Path, output_dir: Path) -> Path:
    """Return the adapter's folder that `name` means: the folder itself, or an adapter of the run that it names.

    Of a run it is final_model, else best_model, else the newest valid checkpoint. Raises AdapterError, and RunError for
    `latest` without a run.
    """
    path = named_folder(str(name), output_dir)
    if _holds_adapter(path):
        return path
    run = RunDir(path)
    restore_set_aside(path)
    checkpoint, bad = latest_good(run)
    for folder in (run.final_model, run.best_model, checkpoint):
        if folder is not None and _holds_adapter(folder):
            return folder
    near = (
        []
        if path.is_dir()
        else difflib.get_close_matches(path.name, [r.name for r in all_runs(output_dir)], cutoff=0.5)
    )
    raise AdapterError(
        _("No adapter found."),
        where=path,
        found=clauses(labelled(p.name, why) for p, why in bad) or (None if path.is_dir() else _("no such folder")),
        fix=_("Did you mean {names}?").format(names=listed(near))
        if near
        else _("Name a run (`lorafit runs` lists them), or a folder with adapter_config.json, such as a checkpoint."),
    )


def _holds_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()
