"""Transfer operations: bundle a run, unpack a bundle, prepare a cloud job, fetch results.

One function per command, as in api.py. Each function returns data and prints nothing.
"""

from pathlib import Path
from typing import Literal

import tyro
from pydantic import BaseModel, Field

from lorafit.config import TrainConfig, write_yaml
from lorafit.errors import ConfigError, RunError
from lorafit.messages import _, listed
from lorafit.progress import ProgressCallback, ignore_progress
from lorafit.run_folders import directory
from lorafit.run_folders.directory import RunDir, saved_config
from lorafit.transfer import bundle as bundles
from lorafit.transfer import fetch as fetching
from lorafit.transfer.cloud.send import CloudFiles, CloudOrder, send
from lorafit.transfer.fetch import Fetched
from lorafit.transfer.unbundle import unbundle


class MoveRequest(BaseModel):
    """Settings that all transfer commands share."""

    output_dir: str = Field("output", description="Folder for runs.")
    lang: Literal["en", "zh"] | None = Field(None, description="Language to speak (None: by locale).")


class BundleRequest(MoveRequest):
    """Pack a run, or the settings of a new run, for another machine. `lorafit train run.zip` starts it there."""

    run: tyro.conf.Positional[list[str]] = Field(
        [], description="RUN: its name, its folder, or `latest`; or none, and the flags of a training."
    )
    output: str = Field("run.zip", description="The zip to write; short: -o.")


def bundle(name: str | None, config: TrainConfig, output_dir: Path, target: Path) -> bundles.BundleInfo:
    """Pack the run `name`, or for None a new run with `config`, into the zip `target`. Raises LorafitErrors."""
    if target.suffix.lower() != ".zip":
        fix = _("Give it a name that ends in .zip.")
        raise ConfigError(_("A bundle is a zip file."), where="--output", found=str(target), fix=fix)
    run = None if name is None else directory.find_run(name, output_dir)
    return bundles.bundle(run, config if run is None else saved_config(run), target)


class CloudRequest(MoveRequest):
    """Prepare a run for a cloud platform.

    PLACE is colab, kaggle, paperspace, sagemaker or skypilot. A run, or the flags of a new training, follow it.
    """

    words: tyro.conf.Positional[list[str]] = Field(
        [], description="PLACE, then RUN: its name, its folder, or `latest`; or PLACE and the flags of a training."
    )
    output: str = Field("cloud", description="The folder to write into; short: -o.")
    base_model: str | None = Field(
        None, description="What the base model is called there, where it is a folder here (None: as here)."
    )


def cloud(place: str, order: CloudOrder, folder: Path, say: ProgressCallback = ignore_progress) -> CloudFiles:
    """Write the files for the platform `place` (a name in registry.CLOUDS) into `folder`. Raises LorafitErrors."""
    return send(place, order, folder, say)


def make_order(name: str | None, config: TrainConfig, output_dir: Path, base: str | None) -> CloudOrder:
    """Return the order for the run `name`, or for a new run with `config` if `name` is None. Raises RunError."""
    run = None if name is None else directory.find_run(name, output_dir)
    return CloudOrder(run, config if run is None else saved_config(run), base)


class FetchRequest(MoveRequest):
    """Check and import the result of another machine: result.zip, model.tar.gz, or a folder."""

    source: tyro.conf.Positional[list[str]] = Field([], description="A zip, a tar.gz, or a folder.")


def fetch(path: Path, output_dir: Path) -> list[Fetched]:
    """Import all runs in `path` into `output_dir`. Raises LorafitErrors; nothing of a damaged run is then left."""
    return fetching.fetch(path, output_dir)


def unpack_bundle(path: Path, output_dir: Path, base: str | None) -> tuple[RunDir, list[str]]:
    """Unpack the bundle `path` into `output_dir`, unless it is there already; return the run to resume, and notes.

    `base` is the name of the base model on this machine. Raises RunError if the bundle holds a finished run, and
    ConfigError if the base model is a local folder of the source machine and `base` is None.
    """
    moved = unbundle(path, output_dir)
    if moved.facts.kind == bundles.FINISHED:
        fix = _("Try it: {command}").format(command=f"lorafit chat --lora_weights {moved.run.path} --interactive")
        raise RunError(_("This bundle holds a finished run: there is nothing to go on with."), where=path, fix=fix)
    config = saved_config(moved.run)
    notes = _version_note(moved.facts)
    if not moved.facts.base_is_local or config.model_name != moved.facts.base:
        return moved.run, notes
    if base is None:
        raise ConfigError(
            _("The base model was a folder on the machine that this bundle comes from; it is not in the bundle."),
            where=path,
            found=moved.facts.base,
            fix=_("Say where it is here: --model_name with a folder, or a hub id of the same model."),
        )
    write_yaml(config.model_copy(update={"model_name": base}), moved.run.config)
    return moved.run, notes


def _version_note(facts: bundles.BundleInfo) -> list[str]:
    """Return a note if packages that affect the tokens have other versions here than where the bundle was made."""
    here = bundles.versions()
    differing = [f"{name} {facts.versions[name]} -> {here.get(name, '-')}" for name in ("lorafit", "transformers", "tokenizers")
                 if facts.versions.get(name) not in (None, here.get(name))]  # fmt: skip
    text = _("Made with other versions than are here: {names}. Data that come out otherwise are refused.")
    return [text.format(names=listed(differing))] if differing else []
