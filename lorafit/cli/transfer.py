"""The commands `bundle`, `cloud` and `fetch`, which move runs between machines."""

import difflib
from pathlib import Path
from typing import Literal

import tyro
from pydantic import BaseModel, Field
from rich.console import Console
from rich.text import Text

from lorafit import api
from lorafit.cli.app import OK
from lorafit.cli.flags import split_flags, split_words
from lorafit.cli.parse import parse, train_config
from lorafit.config import Folder, TrainConfig
from lorafit.errors import ConfigError
from lorafit.messages import _, listed
from lorafit.paths import is_stdout, is_stream, user_path
from lorafit.registry import CLOUDS
from lorafit.reporters.terminal import next_commands
from lorafit.reporters.terminal.cloud import show_cloud_files
from lorafit.reporters.terminal.console import open_console
from lorafit.reporters.terminal.status import status_line
from lorafit.transfer.bundle import FINISHED, NEW_RUN, UNFINISHED, BundleInfo
from lorafit.units import bytes_text


class TransferFlags(BaseModel):
    """Settings that all transfer commands share."""

    output_dir: Folder = Field("output", description="Folder for runs.")
    lang: Literal["en", "zh"] | None = Field(None, description="Language of the messages (default: from the locale).")


class BundleFlags(TransferFlags):
    """Pack a run, or the settings of a new run, for another machine. `lorafit train run.zip` starts it there."""

    run: tyro.conf.Positional[list[str]] = Field([], description="Name or folder of a run, or `latest`.")
    output: str = Field("run.zip", description="Zip file to write, also -o.")


class CloudFlags(TransferFlags):
    """Prepare a run for a cloud platform.

    PLACE is colab, kaggle, paperspace, sagemaker or skypilot. A run, or the flags of a new training, follow it.
    """

    words: tyro.conf.Positional[list[str]] = Field(
        [], description="PLATFORM, then RUN (name, folder, or `latest`) or the flags of `lorafit train`."
    )
    output: str = Field("cloud", description="Folder to write into, also -o.")
    base_model: str | None = Field(
        None, description="Name of the base model on the platform, if it is a local folder here (default: as here)."
    )


class FetchFlags(TransferFlags):
    """Check and import the result of another machine: result.zip, model.tar.gz, or a folder."""

    source: tyro.conf.Positional[list[str]] = Field([], description="Result to fetch: a zip, a tar.gz, or a folder.")


def bundle(argv: list[str]) -> int:
    """Run `bundle [RUN] -o run.zip`, or `bundle [flags of train] -o run.zip`."""
    words, own, others = split_flags(BundleFlags, argv)
    request = parse(BundleFlags, own, "bundle", BundleFlags.model_validate({"run": words}), more=_train_flags_too())
    name = named_run(words, others, "bundle")
    target = user_path(request.output)
    config = training_settings(name, others, "bundle")
    facts = api.bundle(target, name, config, Path(request.output_dir))
    console = open_console(stderr=is_stdout(target))
    file = "run.zip" if is_stream(target) else target.name
    size = None if is_stream(target) else target.stat().st_size
    _say(console, _("✓ bundle: {path} ({size}), {what}"), path=target, size=bytes_text(size), what=_what(facts))
    verb = "fetch" if facts.kind == FINISHED else "train"
    _say(console, _("On the other machine, run: {command}"), command=f"lorafit {verb} {file}{_base_flag(facts)}")
    return OK


def cloud(argv: list[str]) -> int:
    """Run `cloud PLATFORM [RUN] [-o DIR]`, or `cloud PLATFORM [flags of train] [-o DIR]`."""
    words, own, others = split_flags(CloudFlags, argv)
    request = parse(CloudFlags, own, "cloud", CloudFlags.model_validate({"words": words}), more=_train_flags_too())
    if not words or words[0] not in CLOUDS:
        near = difflib.get_close_matches(words[0] if words else "", CLOUDS, n=1)
        raise ConfigError(
            _("Platform missing or unknown."),
            found=words[0] if words else None,
            fix=_("Did you mean `{name}`?").format(name=near[0]) if near else _("Use one of: {known}.").format(
                known=listed(CLOUDS)),
        )  # fmt: skip
    name = named_run(words[1:], others, f"cloud {words[0]}")
    config = training_settings(name, others, "cloud")
    order = api.cloud_order(name, config, Path(request.output_dir), request.base_model)
    with status_line(open_console(stderr=True)) as say:
        sent = api.cloud(words[0], user_path(request.output), order, say)
    show_cloud_files(sent, open_console())
    return OK


def fetch(argv: list[str]) -> int:
    """Run `fetch DIR_OR_ZIP`: import runs that come back from another machine."""
    words, flags = split_words(FetchFlags, argv)
    request = parse(FetchFlags, flags, "fetch", FetchFlags.model_validate({"source": words}))
    if len(words) != 1:
        fix = _("Name the result to fetch, e.g. {command}").format(command="lorafit fetch result.zip")
        raise ConfigError(_("Expected exactly one file or folder."), found=" ".join(words) or None, fix=fix)
    console = open_console()
    for fetched in api.fetch(user_path(words[0]), Path(request.output_dir)):
        run = str(fetched.run.path)
        _say(console, _("✓ fetched: {path}"), path=run)
        if not fetched.finished:
            _say(console, _("Not finished. Resume: {command}"), command=next_commands.resume(run))
            continue
        base = "" if fetched.base_exists else " --base_model FOLDER"
        _say(console, _("Try the fine-tuned model: {command}"), command=next_commands.chat(run) + base)
    return OK


def named_run(words: list[str], flags: list[str], verb: str) -> str | None:
    """Return the named run, or None if there are only flags.

    Raise ConfigError for several runs, for a run together with flags of train, and for neither.
    """
    usage = _("Run `{command}`, or give the flags of `lorafit train` without a run.").format(
        command=f"lorafit {verb} RUN"
    )
    if len(words) > 1 or (not words and not flags):
        raise ConfigError(_("Expected exactly one run."), found=" ".join(words) or None, fix=usage)
    if words and flags:
        raise ConfigError(
            _("A run and flags of `lorafit train` cannot be combined: a run keeps its settings."),
            found=" ".join(flags),
            fix=usage,
        )
    return words[0] if words else None


def _train_flags_too() -> str:
    return _("Instead of RUN, the flags of `lorafit train` describe a new training.")


def training_settings(name: str | None, flags: list[str], verb: str) -> TrainConfig:
    """Return the settings in `flags`, or the defaults if a run is named."""
    return TrainConfig() if name is not None else train_config(flags, verb)


def _what(facts: BundleInfo) -> str:
    if facts.kind == NEW_RUN:
        return _("settings and data of a new run")
    text = _("run {run} up to step {step}") if facts.kind == UNFINISHED else _("finished run {run} with its adapter")
    return text.format(run=facts.run, step=facts.step)


def _base_flag(facts: BundleInfo) -> str:
    return " --model_name FOLDER" if facts.base_is_local and facts.kind != FINISHED else ""


def _say(console: Console, text: str, **values: object) -> None:
    console.print(Text(text.format(**values)), soft_wrap=True)
