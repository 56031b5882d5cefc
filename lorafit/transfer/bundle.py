"""Bundles: one deterministic zip to start, resume or try a run on another machine.

A bundle holds the settings, the data files, the newest good checkpoint or the final adapter, the best adapter, the
events with losses, and package versions. It holds no absolute path, no part of the home folder and no secret.
Settings of one machine or person (device, folders, mirrors, notifications) are left out. The target machine plans again.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from lorafit import __version__
from lorafit.atomic import MANIFEST, atomic_folder, disk_errors, restore_set_aside, verify
from lorafit.config import TrainConfig, what_fields, write_yaml
from lorafit.data.sources import local_files
from lorafit.diagnostics.redact import scrub
from lorafit.engines.tokenizer import read_template
from lorafit.errors import ConfigError, RunError
from lorafit.events import EvalDone, Event, EventLog, Finished, Started, StepDone, read_events
from lorafit.hardware.detect import Machine
from lorafit.messages import _
from lorafit.models.hub import is_local
from lorafit.paths import check_for_user, is_stream, user_path
from lorafit.planner.effective_batch import resolve_effective_batch
from lorafit.planner.plan import Plan
from lorafit.run_folders.adapter import CHAT, read_adapter
from lorafit.run_folders.checkpoint import latest_good, step_of
from lorafit.run_folders.directory import RunDir
from lorafit.run_folders.find_adapter import find_adapter
from lorafit.run_folders.foreign_adapter import MLX_SETTINGS, is_mlx
from lorafit.run_folders.origins import read_origins
from lorafit.run_folders.peft_form import CONFIG
from lorafit.training.initial_adapter import with_rank, with_targets
from lorafit.transfer import archive

BUNDLE, RUN, INPUTS, LAYOUT = "bundle.json", "run", "inputs", 1
# Kinds of bundle: settings of a new run, an unfinished run, a finished run.
NEW_RUN, UNFINISHED, FINISHED = "begin", "go_on", "result"
# Settings with the same meaning on every machine and for every person. The target machine supplies the others.
PORTABLE_SETTINGS = (*what_fields(), "hub", "demo", "max_rejects", "save_steps", "eval_steps", "keep_checkpoints")
NUMERIC_EVENTS = (Started, StepDone, EvalDone, Finished)  # the texts of other events can contain paths
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "datasets", "bitsandbytes", "mlx", "mlx-lm")
CACHED = re.compile(r"models--(.+?)--(.+)")  # folder name in the cache of huggingface_hub


@dataclass(frozen=True)
class BundleInfo:
    """Content of bundle.json. `kind` is NEW_RUN, UNFINISHED or FINISHED. For NEW_RUN, `run` is a prefix."""

    layout: int
    kind: str
    run: str
    step: int
    base: str
    base_is_local: bool  # the base is a folder that is not in the bundle; --model_name gives its path on the target
    versions: dict[str, str]


def bundle(run: RunDir | None, config: TrainConfig, target: Path) -> BundleInfo:
    """Pack `run` with its `config`, or `config` alone, into the zip `target`. Raises LorafitErrors."""
    if target.suffix.lower() != ".zip" and not is_stream(target):
        fix = _("Choose a file name that ends in .zip.")
        raise ConfigError(_("The name of a bundle must end in .zip."), where="--output", found=str(target), fix=fix)
    check_for_user(target, "--output")
    with tempfile.TemporaryDirectory(prefix="lorafit-") as scratch:
        folder = Path(scratch) / "bundle"
        try:
            with disk_errors(folder, "TMPDIR"), atomic_folder(folder) as beside:
                facts = _stage(run, config, beside)
        except FileNotFoundError as error:  # a run in progress deletes its old checkpoints
            what = _("A file disappeared while the bundle was being made.")
            raise RunError(what, where=run and run.path, found=error, fix=_("Run the command again.")) from None
        archive.pack(folder, target)
    return facts


def _stage(run: RunDir | None, config: TrainConfig, folder: Path) -> BundleInfo:
    inside = RunDir(folder / RUN)
    inside.path.mkdir()
    kind = NEW_RUN if run is None else UNFINISHED if _finished(run) is None else FINISHED
    checkpoint = _checkpoint(run) if run is not None and kind == UNFINISHED else None
    settled = portable(config, inside.path, kind, checkpoint is not None)
    write_yaml(settled, inside.config)
    step = 0
    if run is not None:
        step = (checkpoint and step_of(checkpoint)) or (Plan.load(run.plan).steps if kind == FINISHED else 0)
        names = renamed_paths(config, settled)
        _stage_run(run, inside, step, settled.model_name)
        origins = read_origins(run) if kind == UNFINISHED else None
        if origins is not None:
            origins.portable(settled.model_name).save(inside.origins)
        for source in _adapters(run, kind, checkpoint):
            copy_adapter(source, inside.path / source.relative_to(run.path), settled.model_name, names)
    facts = BundleInfo(
        layout=LAYOUT,
        kind=kind,
        run=run.name if run else run_prefix(settled.model_name),
        step=step,
        base=settled.model_name,
        base_is_local=_is_folder(config.model_name) and settled.model_name == Path(config.model_name).name,
        versions=versions(),
    )
    (folder / BUNDLE).write_text(json.dumps(vars(facts), ensure_ascii=False, indent=1) + "\n", "utf-8")
    return facts


# Settings and inputs


def portable(config: TrainConfig, folder: Path, kind: str, has_checkpoint: bool) -> TrainConfig:
    """Return `config` without local paths. Copy the local data and adapter that it names to `folder`/inputs.

    A finished run (`kind` FINISHED) needs no inputs. The initial adapter is needed only if there is no checkpoint.
    """
    start = None if config.init_adapter is None else find_adapter(config.init_adapter, Path(config.output_dir))
    if start is not None and kind == NEW_RUN:
        config = with_targets(with_rank(config, start), start)
    settings = {name: getattr(config, name) for name in PORTABLE_SETTINGS}
    settings |= {"effective_batch": resolve_effective_batch(config), "model_name": base_name(config.model_name)}
    carried = kind != FINISHED  # a finished run needs no data
    for name, split in (("dataset_name", config.dataset_split), ("valid_dataset", config.valid_split)):
        if settings[name] is not None:
            settings[name] = ",".join(_data(settings[name], split, name, folder if carried else None))
    if settings["chat_template"] is not None:
        settings["chat_template"] = read_template(settings["chat_template"])
    if start is not None:
        settings["init_adapter"] = f"{INPUTS}/init_adapter"
        if carried and not has_checkpoint:
            copy_adapter(start, folder / settings["init_adapter"], settings["model_name"], {})
    return TrainConfig.model_validate(settings)


def _data(name: str, split: str, field: str, folder: Path | None) -> Iterator[str]:
    """Yield the bundle path or hub ID of each data set in `name`. Copy local files to `folder` unless it is None."""
    for place, data in enumerate(local_files(name, split)):
        if not data.files:
            yield data.name
            continue
        inside = Path(INPUTS, field, str(place))
        for path in data.files:
            if folder is not None:
                target = folder / inside / path.relative_to(data.root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        yield (inside / data.inside).as_posix()


def base_name(name: str) -> str:
    """Return the name of a base model without its path: `demo`, a model ID, or the folder name.

    A folder in the cache of huggingface_hub gives the model ID.
    """
    if not _is_folder(name):
        return name
    cached = next((m for part in Path(name).parts if (m := CACHED.fullmatch(part))), None)
    return f"{cached[1]}/{cached[2]}" if cached else user_path(name).resolve().name


def _is_folder(name: str) -> bool:
    return name != "demo" and is_local(name)


def run_prefix(base: str) -> str:
    """Return the prefix of run names for this base model: "llama" for meta-llama/Llama-3.2-3B-Instruct."""
    word = re.match(r"[a-z]+", base.rpartition("/")[2].lower())
    return "llama" if base == "demo" else word[0] if word else "model"


def renamed_paths(before: TrainConfig, after: TrainConfig) -> dict[str, str]:
    """Map each model, data and adapter name that differs between `before` and `after` to its new name."""
    names = ("model_name", "dataset_name", "valid_dataset", "init_adapter")
    pairs = ((getattr(before, name), getattr(after, name)) for name in names)
    return {str(old): str(new) for old, new in pairs if old is not None and old != new}


def versions() -> dict[str, str]:
    """Return the versions of lorafit and of the installed packages in PACKAGES."""
    found = {"lorafit": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


# A run


def _finished(run: RunDir) -> Finished | None:
    return next((event for event in read_events(run.events) if isinstance(event, Finished)), None)


def _checkpoint(run: RunDir) -> Path | None:
    """Return the newest good checkpoint. Without one, return None: the target machine starts from step 0."""
    restore_set_aside(run.path)
    return latest_good(run)[0]


def _stage_run(run: RunDir, inside: RunDir, step: int, base: str) -> None:
    """Copy plan, machine and numeric events up to `step`.

    The reasons in the plan (`choices`) are left out, because they describe this machine.
    """
    if run.plan.is_file():
        replace(Plan.load(run.plan), choices=[]).save(inside.plan)
    if run.machine.is_file():
        inside.machine.write_text(Machine.from_json(run.machine.read_text("utf-8")).to_json(), "utf-8")
    with EventLog(inside.events) as log:
        for event in read_events(run.events):
            if isinstance(event, NUMERIC_EVENTS) and event.step <= step:
                log.write(_without_paths(event, run, base))


def _without_paths(event: Event, run: RunDir, base: str) -> Event:
    return replace(event, run=run.name, model=base) if isinstance(event, Started) else event


def _adapters(run: RunDir, kind: str, checkpoint: Path | None) -> Iterator[Path]:
    """Yield the adapter folders to pack."""
    if kind == FINISHED:
        yield run.final_model
    if checkpoint is not None:
        yield checkpoint
    if run.best_model.is_dir():
        yield run.best_model


def copy_adapter(source: Path, target: Path, base: str, names: dict[str, str]) -> None:
    """Copy an adapter folder atomically, and replace local names in its .md files by `names`.

    A base model that is named by a folder is renamed to `base`. Raises RunError if the adapter is damaged, and
    AdapterError if the folder holds no readable adapter.
    """
    if (source / MANIFEST).is_file() and (fault := verify(source)):
        fix = _("Choose another checkpoint, or fetch the adapter again from where it was made.")
        raise RunError(_("The adapter folder is damaged."), where=source, found=fault, fix=fix)
    old = read_adapter(source)[0].base_model
    named_by_place = old is not None and _is_folder(old)
    names = names | ({old: base} if old is not None and named_by_place else {})
    with atomic_folder(target) as folder:
        for path in sorted(source.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.name != MANIFEST:
                copy = folder / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                _carry_file(path, copy, names)
        if named_by_place:
            _rename_base(folder, base)
        _drop_paths_of_mlx(folder / CONFIG)


def _carry_file(path: Path, copy: Path, names: dict[str, str]) -> None:
    if path.suffix != ".md":
        shutil.copyfile(path, copy)
        return
    text = path.read_text("utf-8", errors="replace")
    for old, new in sorted(names.items(), key=lambda pair: -len(pair[0])):
        text = text.replace(old, new)
    copy.write_text(scrub(text), "utf-8")


def _drop_paths_of_mlx(config: Path) -> None:
    """Keep only the settings of an adapter of mlx-lm that lorafit reads: the others hold paths of its author."""
    facts: dict[str, Any] = json.loads(config.read_text("utf-8"))
    if is_mlx(facts):
        kept = {name: facts[name] for name in MLX_SETTINGS if name in facts}
        config.write_text(json.dumps(kept, ensure_ascii=False, indent=2) + "\n", "utf-8")


def _rename_base(folder: Path, base: str) -> None:
    for file, key in ((CONFIG, "base_model_name_or_path"), (CHAT, "base_model")):
        path = folder / file
        if path.is_file():
            facts: dict[str, Any] = json.loads(path.read_text("utf-8"))
            key = "model" if is_mlx(facts) else key
            path.write_text(json.dumps({**facts, key: base}, ensure_ascii=False, indent=2) + "\n", "utf-8")
