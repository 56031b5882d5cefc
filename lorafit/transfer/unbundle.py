"""How does a bundle become a run of this machine? Unpacked beside its place, checked, and renamed once.

Nothing in it is believed before its digests are right; settings that belong to a machine or a person are not taken from
it, whoever wrote them, and the names of data lead into the bundle or to a hub, never elsewhere on this disk.
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
from lorafit.errors import LorafitError, RunError
from lorafit.messages import _
from lorafit.models.hub import is_local
from lorafit.run_folders import directory
from lorafit.run_folders.directory import RunDir
from lorafit.transfer import archive
from lorafit.transfer.bundle import BEGIN, BUNDLE, GO_ON, INPUTS, KEPT, LAYOUT, RESULT, RUN, BundleInfo
from lorafit.units import MIB

MOST_FACTS_BYTES = 16 * MIB  # of bundle.json and the manifest
NAME = re.compile(r"[\w][\w.-]*")


@dataclass(frozen=True)
class Unbundled:
    """`run` is what the bundle became; `known`: it was here already, and is gone on with as it stands."""

    run: RunDir
    facts: BundleInfo
    known: bool


def is_bundle(path: Path) -> bool:
    """Whether `path` is a zip that bundle() wrote, by what it says of itself."""
    if not path.is_file() or path.suffix.lower() != ".zip":
        return False
    try:
        return archive.read_member(path, BUNDLE, MOST_FACTS_BYTES) is not None
    except LorafitError:
        return False


def unbundle(path: Path, output_dir: Path) -> Unbundled:
    """The run that the bundle `path` is, in `output_dir`; the same one when it was unpacked there before.

    Raises RunError where the bundle is damaged, unsafe or none, and DiskError.
    """
    identity = _identity(path)
    for run in directory.all_runs(output_dir):
        if (known := _came_from(run, identity)) is not None:
            return Unbundled(run, known, known=True)
    ensure_writable(output_dir)
    with disk_errors(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".unpacking-") as scratch:
        folder = Path(scratch)
        archive.unpack(path, folder)
        with _told(path):
            facts = _checked(folder)
            inside = RunDir(folder / RUN)
            settings = _settings(inside)
        _note_origin(inside, facts, identity)
        with disk_errors(output_dir):
            run = _settle(inside, facts, settings, output_dir)
    return Unbundled(run, facts, known=False)


def _identity(path: Path) -> str:
    """What tells a bundle from any other: the digest of its manifest, which has those of all files."""
    if not path.is_file():
        raise RunError(_("There is no such bundle."), where=path, fix=_("Make one: {command}").format(command=MAKE))
    manifest = archive.read_member(path, MANIFEST, MOST_FACTS_BYTES)
    if manifest is None:
        raise RunError(
            _("This zip is no bundle of lorafit."), where=path, fix=_("Make one: {command}").format(command=MAKE)
        )
    return hashlib.sha256(manifest).hexdigest()


MAKE = "lorafit bundle RUN -o run.zip"


def _came_from(run: RunDir, identity: str) -> BundleInfo | None:
    """The facts of the bundle that `run` was unpacked from, where it was that one."""
    try:
        origin = json.loads((run.inputs / BUNDLE).read_text("utf-8"))
        return _facts(origin["facts"]) if origin["identity"] == identity else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What is wrong with the bundle, in words."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, LorafitError) as error:
        raise RunError(
            _("This bundle is damaged, or was made by another version of lorafit."),
            where=path,
            found=error,
            fix=_("Make it anew where it came from: {command}").format(command=MAKE),
        ) from None


def _checked(folder: Path) -> BundleInfo:
    """What the unpacked bundle is. Raises ValueError where a digest differs, or a file is there that no digest covers."""
    if fault := verify(folder):
        raise ValueError(fault)
    listed = set(json.loads((folder / MANIFEST).read_text("utf-8"))["files"]) | {MANIFEST}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if strange := sorted(there - listed):
        raise ValueError(_("a file that its manifest does not know: {name}").format(name=strange[0]))
    return _facts(json.loads((folder / BUNDLE).read_text("utf-8")))


def _facts(values: dict[str, Any]) -> BundleInfo:
    if values["layout"] != LAYOUT:
        raise ValueError(_("its layout is {layout}, known is {known}").format(layout=values["layout"], known=LAYOUT))
    facts = BundleInfo(**{field.name: values[field.name] for field in fields(BundleInfo)})
    if facts.kind not in (BEGIN, GO_ON, RESULT) or not NAME.fullmatch(facts.run) or not isinstance(facts.base, str):
        raise ValueError(f"{facts.kind!r}, {facts.run!r}")
    return facts


def _settings(inside: RunDir) -> TrainConfig:
    """The bundle's settings, those that it may give."""
    settings = {name: value for name, value in read_yaml(inside.config).items() if name in KEPT}
    config = make_config(settings, where=inside.config)
    for name in ("dataset_name", "valid_dataset", "init_adapter"):
        for one in (getattr(config, name) or "demo").split(","):
            if not _inside(one) and one != "demo" and is_local(one):
                raise ValueError(_("`{name}` leads out of the bundle: {value}").format(name=name, value=one))
    if "{" not in (config.chat_template or "{"):
        raise ValueError(f"chat_template: {config.chat_template}")
    return config


def _inside(name: str) -> bool:
    """Whether `name` is one of the bundle's own inputs."""
    parts = PurePosixPath(name).parts
    return parts[:1] == (INPUTS,) and ".." not in parts


def _note_origin(inside: RunDir, facts: BundleInfo, identity: str) -> None:
    inside.inputs.mkdir(exist_ok=True)
    text = json.dumps({"identity": identity, "facts": vars(facts)}, ensure_ascii=False, indent=1)
    (inside.inputs / BUNDLE).write_text(text + "\n", "utf-8")


def _settle(inside: RunDir, facts: BundleInfo, settings: TrainConfig, output_dir: Path) -> RunDir:
    """Give the unpacked run its name in `output_dir`, its settings naming the inputs where they then lie."""
    begin = facts.kind == BEGIN
    run = directory.create(output_dir, facts.run) if begin else directory.take_name(output_dir, facts.run)
    write_yaml(settings.model_copy(update=_placed(settings, run)), inside.config)
    inside.path.rename(run.path)  # over the empty folder that keeps the name
    return run


def _placed(settings: TrainConfig, run: RunDir) -> dict[str, str]:
    placed: dict[str, str] = {}
    for name in ("dataset_name", "valid_dataset", "init_adapter"):
        value = getattr(settings, name)
        if value is not None:
            placed[name] = ",".join(str(run.path / one) if _inside(one) else one for one in value.split(","))
    return placed
