"""Conversion of a command's arguments to its settings.

The module does not import the code of the commands. A bundle is unpacked and the
settings of a resumed run are read here, because typed flags override them.
"""

import os
from pathlib import Path
from typing import Any, TypeVar

import tyro
from pydantic import BaseModel

from lorafit.cli.app import COMMANDS, OK, PACKAGES, flag_value
from lorafit.cli.config_file import read_config_file
from lorafit.cli.flags import HELP, check_arguments
from lorafit.cli.help import show_help
from lorafit.config import DEMO_PRESET, TrainConfig, make_config
from lorafit.distributed.launch import rank_info
from lorafit.messages import _
from lorafit.paths import user_path
from lorafit.registry import Entry, load
from lorafit.reporters.terminal.console import open_console, print_safe
from lorafit.run_folders.directory import LATEST, find_run, saved_settings

Settings = TypeVar("Settings", bound=BaseModel)

TAKE_OVER = Entry(
    "lorafit.transfer.unbundle:unpack_bundle", PACKAGES
)  # unpacks a bundle; imported only if one is given


def fill_in_latest(argv: list[str]) -> list[str]:
    """Return `argv` with "latest" inserted after a --resume without a value."""
    spelled: list[str] = []
    for word, following in zip(argv, [*argv, "--"][1:], strict=True):
        spelled += [word, LATEST] if word == "--resume" and following.startswith("--") else [word]
    return spelled


def unpack_resumed_bundle(argv: list[str]) -> list[str]:
    """Return `argv`. If --resume names a bundle, unpack it first and append --resume with its run."""
    bundle = flag_value(argv, "resume") or ""
    if not bundle.lower().endswith(".zip") or set(HELP) & set(argv):
        return argv
    output_dir = user_path(flag_value(argv, "output_dir") or "output")
    run, notes = load(TAKE_OVER)(user_path(bundle), output_dir, flag_value(argv, "model_name"))
    for note in notes:
        print_safe(note, stderr=True)
    return [*argv, "--resume", str(run.path)]


def train_config(argv: list[str], verb: str = "train") -> TrainConfig:
    """Return the settings of a training. Later sources win: resumed run, demo preset, YAML file, flags."""
    bundle = argv and argv[0].lower().endswith(".zip")
    argv = fill_in_latest(["--resume", *argv] if bundle else argv)
    check_arguments(TrainConfig, argv, verb)
    argv = unpack_resumed_bundle(argv)
    file = flag_value(argv, "config")
    leads = rank_info().leads and not set(HELP) & set(argv)
    console = open_console(stderr=True) if leads else None
    demo = flag_value(argv, "demo") is not None
    data_given = demo or any(flag_value(argv, name) is not None for name in ("dataset_name", "resume"))
    written = read_config_file(user_path(file), console, data_given) if file else {}
    demo = demo or written.get("demo") is True
    settings = (DEMO_PRESET if demo else {}) | written
    run = flag_value(argv, "resume") or written.get("resume")
    if run and leads:  # rank 0 sends the settings to the rest
        output_dir = flag_value(argv, "output_dir") or settings.get("output_dir", "output")
        settings = run_settings(str(run), user_path(str(output_dir))) | settings
    more = (
        _("`resume` takes RUN (default: the latest run) and the flags of `lorafit train`.") if verb == "resume" else ""
    )
    default = make_config(settings, file or _("the command line"))
    return _as_given(parse(TrainConfig, argv, verb, more=more, default=default), argv, settings)


def _as_given(config: TrainConfig, argv: list[str], settings: dict[str, Any]) -> TrainConfig:
    """Return `config` with only the settings in its `model_fields_set` that are in `argv` or `settings`, or differ."""
    names = [name for name in TrainConfig.model_fields if flag_value(argv, name) is not None or name in settings]
    given = {name: getattr(config, name) for name in names}
    return TrainConfig.model_validate(config.model_dump(exclude_defaults=True) | given)


def run_settings(name: str, output_dir: Path) -> dict[str, Any]:
    """Return the saved settings of the run `name` ("latest": the newest). Raise RunError or ConfigError.

    `output_dir` replaces the saved one, because the folder of runs may have moved.
    """
    return saved_settings(find_run(name, output_dir)) | {"output_dir": str(output_dir)}


def parse(
    kind: type[Settings],
    argv: list[str],
    verb: str,
    default: Settings | None = None,
    about: str = "",
    more: str = "",
) -> Settings:
    """Return `argv` parsed as settings of `kind`. If `argv` asks for help, print it and raise SystemExit.

    Flags may have hyphens or underscores. Raise ConfigError for an unknown flag, with the nearest name. `about` says what
    `verb` does; it is needed if `verb` is not a key of COMMANDS. `more` is the last sentence of the help.
    """
    check_arguments(kind, argv, verb)
    default = default or kind()
    if set(HELP) & set(argv):
        show_help(default, verb, about or COMMANDS[verb].help(), open_console(), more)
        raise SystemExit(OK)
    os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")
    return tyro.cli(kind, args=argv, default=default, prog=f"lorafit {verb}", use_underscores=True)
