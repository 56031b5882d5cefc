"""Preparation of a run for a platform: bundle, wheel of this program and the platform's files in one folder."""

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lorafit import registry
from lorafit.atomic import MANIFEST, disk_errors, ensure_writable
from lorafit.config import TrainConfig
from lorafit.errors import ConfigError
from lorafit.messages import _
from lorafit.paths import open_for_user
from lorafit.progress import ProgressCallback
from lorafit.run_folders.directory import RunDir
from lorafit.transfer import archive
from lorafit.transfer.bundle import FINISHED, BundleInfo, bundle
from lorafit.transfer.cloud.base import CloudPackage, Platform, Quote
from lorafit.transfer.cloud.quotes import quotes
from lorafit.transfer.cloud.wheel import build_wheel
from lorafit.units import MIB

BUNDLE_NAME = "run.zip"


@dataclass(frozen=True)
class CloudFiles:
    """The output of send() for a platform.

    `title` is the name of the platform. `files` are the names in `folder`. `quotes` are the quotes for the platform's
    machines. `next_steps` are the next steps for the user.
    """

    title: str
    folder: Path
    facts: BundleInfo
    files: list[str]
    quotes: list[Quote]
    next_steps: list[str]


@dataclass(frozen=True)
class CloudOrder:
    """A request to send `run`, started with `config`, or a new run with `config` if `run` is None.

    `base` is the name of the base model on the platform; None: the same name as here.
    """

    run: RunDir | None
    config: TrainConfig
    base: str | None


def send(place: str, order: CloudOrder, folder: Path, say: ProgressCallback) -> CloudFiles:
    """Write the files for the platform `place` into `folder`. Raises LorafitErrors."""
    target: Platform = registry.load(registry.find_entry(registry.CLOUDS, place))
    ensure_writable(folder, "--output")
    say(_("Making the bundle"))
    with tempfile.TemporaryDirectory(prefix="lorafit-") as scratch:
        packed = Path(scratch) / BUNDLE_NAME
        facts = bundle(order.run, order.config, packed)
        _check(target, facts, order.base)
        with disk_errors(folder, "--output"):
            folder.mkdir(parents=True, exist_ok=True)
        with open_for_user(folder / BUNDLE_NAME, "--output") as file, packed.open("rb") as source:
            shutil.copyfileobj(source, file)
    say(_("Building the lorafit wheel"))
    install = build_wheel(folder)
    say(_("Planning for {place}").format(place=target.title))
    flags = ["--model_name", order.base] if order.base is not None else []
    parcel = CloudPackage(
        facts, _name(facts, folder), BUNDLE_NAME, install, flags, quotes(order.config, target.machines)
    )
    steps = target.write(parcel, folder)
    return CloudFiles(target.title, folder, facts, sorted(p.name for p in folder.iterdir()), parcel.quotes, steps)


def _check(target: Platform, facts: BundleInfo, base: str | None) -> None:
    """Raise ConfigError for a finished run, a base model that stays here, or a bundle that `target` refuses."""
    if facts.kind == FINISHED:
        fix = _("To train the adapter further, start a new run with --init_adapter.")
        raise ConfigError(_("This run is finished."), where=facts.run, fix=fix)
    if facts.base_is_local and base is None:
        raise ConfigError(
            _("The base model is a folder on this machine and is not part of the bundle."),
            found=facts.base,
            fix=_(
                "Name the base model on the platform with --base_model: a model ID, such as "
                "Qwen/Qwen3-0.6B, or a folder."
            ),
        )
    target.check(facts)


def _name(facts: BundleInfo, folder: Path) -> str:
    """Return the name of the run on the platform. It ends in a digest, so the same bundle has the same name."""
    manifest = archive.read_member(folder / BUNDLE_NAME, MANIFEST, 16 * MIB) or b""
    word = facts.run.partition("-lora-")[0].lower()
    return f"{word}-{hashlib.sha256(manifest).hexdigest()[:8]}"
