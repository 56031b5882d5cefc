"""Conversion of a bundle to a run: unpack in a temporary folder, verify, rename once.

The content is used only after all digests match. Settings of a machine or a person are ignored. Data names must point
into the bundle or to a hub; any other path on this disk is refused.
"""

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from lorafit.atomic import MANIFEST, disk_errors, ensure_writable, verify
from lorafit.config import TrainConfig, make_config, read_yaml, write_yaml
from lorafit.errors import ConfigError, LorafitError, RunError
from lorafit.messages import _, listed
from lorafit.models.hub import is_local
from lorafit.run_folders import directory
from lorafit.run_folders.directory import RunDir, saved_config
from lorafit.transfer import archive
from lorafit.transfer.bundle import (
    BUNDLE,
    FINISHED,
    INPUTS,
    LAYOUT,
    NEW_RUN,
    PORTABLE_SETTINGS,
    RUN,
    UNFINISHED,
    BundleInfo,
    versions,
)
from lorafit.units import MIB

MOST_FACTS_BYTES = 16 * MIB  # largest bundle.json or manifest
NAME = re.compile(r"[\w][\w.-]*")


@dataclass(frozen=True)
class Unbundled:
    """The run made from a bundle. `existed` means that it was unpacked earlier and is resumed in its present state."""

    run: RunDir
    facts: BundleInfo
    existed: bool


def is_bundle(path: Path) -> bool:
    """Return whether `path` is a zip that contains bundle.json. False also for an unreadable zip."""
    if not path.is_file() or path.suffix.lower() != ".zip":
        return False
    try:
        return archive.read_member(path, BUNDLE, MOST_FACTS_BYTES) is not None
    except LorafitError:
        return False


def unpack_bundle(path: Path, output_dir: Path, base: str | None) -> tuple[RunDir, list[str]]:
    """Unpack the bundle `path` into `output_dir`, unless it is there already; return the run to resume, and notes.

    `base` is the name of the base model on this machine. Raises RunError if the bundle holds a finished run, and
    ConfigError if the base model is a local folder of the source machine and `base` is None.
    """
    moved = unbundle(path, output_dir)
    if moved.facts.kind == FINISHED:
        fix = _("Try the fine-tuned model: {command}").format(
            command=f"lorafit chat --lora_weights {moved.run.path} --interactive"
        )
        raise RunError(_("The run in this bundle is finished: nothing to resume."), where=path, fix=fix)
    config = saved_config(moved.run)
    notes = _version_note(moved.facts)
    if not moved.facts.base_is_local or config.model_name != moved.facts.base:
        return moved.run, notes
    if base is None:
        raise ConfigError(
            _("The base model is a folder on the machine that made the bundle, and not part of the bundle."),
            where=path,
            found=moved.facts.base,
            fix=_("Name the same model on this machine with --model_name: a folder or a model ID."),
        )
    write_yaml(config.model_copy(update={"model_name": base}), moved.run.config)
    return moved.run, notes


def _version_note(facts: BundleInfo) -> list[str]:
    """Return a note if packages that affect the tokens have other versions here than where the bundle was made."""
    here = versions()
    differing = [f"{name} {facts.versions[name]} -> {here.get(name, '-')}" for name in ("lorafit", "transformers", "tokenizers")
                 if facts.versions.get(name) not in (None, here.get(name))]  # fmt: skip
    text = _(
        "The bundle was made with other versions: {names}. If they process the data "
        "differently, a run in progress cannot be resumed."
    )
    return [text.format(names=listed(differing))] if differing else []


def unbundle(path: Path, output_dir: Path) -> Unbundled:
    """Unpack the bundle `path` into a run in `output_dir`, or return the run that came from it earlier.

    Raises RunError if `path` is damaged, unsafe or not a bundle, and DiskError.
    """
    identity = _identity(path)
    for run in directory.all_runs(output_dir):
        if (known := _came_from(run, identity)) is not None:
            return Unbundled(run, known, existed=True)
    ensure_writable(output_dir)
    with disk_errors(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".unpacking-") as scratch:
        folder = Path(scratch)
        archive.unpack(path, folder)
        with _as_bundle_error(path):
            facts = _checked(folder)
            inside = RunDir(folder / RUN)
            settings = _settings(inside)
        _note_origin(inside, facts, identity)
        with disk_errors(output_dir):
            run = _move_into_place(inside, facts, settings, output_dir)
    return Unbundled(run, facts, existed=False)


def _identity(path: Path) -> str:
    """Return the identity of a bundle: the sha256 of its manifest, which holds the digests of all files."""
    if not path.is_file():
        raise RunError(_("Bundle not found."), where=path, fix=_("Make a bundle: {command}").format(command=MAKE))
    manifest = archive.read_member(path, MANIFEST, MOST_FACTS_BYTES)
    if manifest is None:
        raise RunError(
            _("This zip is not a lorafit bundle."), where=path, fix=_("Make a bundle: {command}").format(command=MAKE)
        )
    return hashlib.sha256(manifest).hexdigest()


MAKE = "lorafit bundle RUN -o run.zip"


def _came_from(run: RunDir, identity: str) -> BundleInfo | None:
    """Return the bundle info of `run` if `run` came from the bundle `identity`, else None."""
    try:
        origin = json.loads((run.inputs / BUNDLE).read_text("utf-8"))
        return _facts(origin["facts"]) if origin["identity"] == identity else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


@contextlib.contextmanager
def _as_bundle_error(path: Path) -> Iterator[None]:
    """Convert errors from the content of a bundle to RunError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, LorafitError) as error:
        raise RunError(
            _("The bundle is damaged, or was made by another version of lorafit."),
            where=path,
            found=error,
            fix=_("Make the bundle again on its original machine: {command}").format(command=MAKE),
        ) from None


def _checked(folder: Path) -> BundleInfo:
    """Verify the unpacked bundle and return its info. Raises ValueError if a digest differs or a file has no digest."""
    if fault := verify(folder):
        raise ValueError(fault)
    listed = set(json.loads((folder / MANIFEST).read_text("utf-8"))["files"]) | {MANIFEST}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if strange := sorted(there - listed):
        raise ValueError(_("file that is not in the list of files: {name}").format(name=strange[0]))
    return _facts(json.loads((folder / BUNDLE).read_text("utf-8")))


def _facts(values: dict[str, Any]) -> BundleInfo:
    if values["layout"] != LAYOUT:
        raise ValueError(_("format version {layout}, expected {known}").format(layout=values["layout"], known=LAYOUT))
    facts = BundleInfo(**{field.name: values[field.name] for field in fields(BundleInfo)})
    if (
        facts.kind not in (NEW_RUN, UNFINISHED, FINISHED)
        or not NAME.fullmatch(facts.run)
        or not isinstance(facts.base, str)
    ):
        raise ValueError(f"{facts.kind!r}, {facts.run!r}")
    return facts


def _settings(inside: RunDir) -> TrainConfig:
    """Return the settings in PORTABLE_SETTINGS of the bundle. Raises ValueError for a path outside the bundle."""
    settings = {name: value for name, value in read_yaml(inside.config).items() if name in PORTABLE_SETTINGS}
    config = make_config(settings, where=inside.config)
    for name in ("dataset_name", "valid_dataset", "init_adapter"):
        for one in (getattr(config, name) or "demo").split(","):
            if not _inside(one) and one != "demo" and is_local(one):
                raise ValueError(_("`{name}` points outside the bundle: {value}").format(name=name, value=one))
    if "{" not in (config.chat_template or "{"):
        raise ValueError(f"chat_template: {config.chat_template}")
    return config


def _inside(name: str) -> bool:
    """Return whether `name` is a path below the bundle's inputs folder."""
    parts = PurePosixPath(name).parts
    return parts[:1] == (INPUTS,) and ".." not in parts


def _note_origin(inside: RunDir, facts: BundleInfo, identity: str) -> None:
    inside.inputs.mkdir(exist_ok=True)
    text = json.dumps({"identity": identity, "facts": vars(facts)}, ensure_ascii=False, indent=1)
    (inside.inputs / BUNDLE).write_text(text + "\n", "utf-8")


def _move_into_place(inside: RunDir, facts: BundleInfo, settings: TrainConfig, output_dir: Path) -> RunDir:
    """Move the unpacked run to its name in `output_dir`. Its settings then name the inputs by their new paths."""
    begin = facts.kind == NEW_RUN
    run = directory.create(output_dir, facts.run) if begin else directory.create_unique_folder(output_dir, facts.run)
    write_yaml(settings.model_copy(update=_with_input_paths(settings, run)), inside.config)
    inside.path.rename(run.path)  # replaces the empty folder that reserves the name
    return run


def _with_input_paths(settings: TrainConfig, run: RunDir) -> dict[str, str]:
    placed: dict[str, str] = {}
    for name in ("dataset_name", "valid_dataset", "init_adapter"):
        value = getattr(settings, name)
        if value is not None:
            placed[name] = ",".join(str(run.path / one) if _inside(one) else one for one in value.split(","))
    return placed
