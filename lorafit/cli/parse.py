"""How do the words behind a command become its settings? Light, as `lorafit plan` needs no more of what commands do.

A bundle is taken over and a run's own settings are read here, since they come before what was typed.
"""

import os
import sys
from pathlib import Path
from typing import Any, TypeVar

import tyro
from pydantic import BaseModel
from rich.console import Console

from lorafit.cli.app import COMMANDS, OK, PACKAGES, flag_value
from lorafit.cli.flags import HELP, check_arguments
from lorafit.cli.help import show_help
from lorafit.config import DEMO_PRESET, TrainConfig, make_config, read_yaml
from lorafit.distributed.launch import rank_info
from lorafit.messages import _
from lorafit.registry import Entry, load
from lorafit.run_folders.directory import find_run

Settings = TypeVar("Settings", bound=BaseModel)

LATEST = "latest"  # what a bare --resume means
TAKE_OVER = Entry("lorafit.transfer.operations:take_over", PACKAGES)  # of a bundle; loaded where one is given


def spell_out_resume(argv: list[str]) -> list[str]:
    """`argv` with "latest" after a --resume that nothing or another flag follows."""
    spelled: list[str] = []
    for word, following in zip(argv, [*argv, "--"][1:], strict=True):
        spelled += [word, LATEST] if word == "--resume" and following.startswith("--") else [word]
    return spelled


def take_over(argv: list[str]) -> list[str]:
    """`argv`, and behind it the run that a bundle behind --resume becomes here."""
    bundle = flag_value(argv, "resume") or ""
    if not bundle.lower().endswith(".zip") or set(HELP) & set(argv):
        return argv
    output_dir = Path(flag_value(argv, "output_dir") or "output")
    run, notes = load(TAKE_OVER)(Path(bundle).expanduser(), output_dir, flag_value(argv, "model_name"))
    for note in notes:
        print(note, file=sys.stderr)
    return [*argv, "--resume", str(run.path)]


def train_config(argv: list[str], verb: str = "train") -> TrainConfig:
    """Preset < the resumed run's own settings < YAML < flags, the later winning."""
    bundle = argv and argv[0].lower().endswith(".zip")
    argv = spell_out_resume(["--resume", *argv] if bundle else argv)
    check_arguments(TrainConfig, argv, verb)
    argv = take_over(argv)
    file = flag_value(argv, "config")
    written = read_yaml(Path(file)) if file else {}
    demo = flag_value(argv, "demo") is not None or written.get("demo") is True
    settings = (DEMO_PRESET if demo else {}) | written
    run = flag_value(argv, "resume") or written.get("resume")
    if run and rank_info().leads and not set(HELP) & set(argv):  # the others are told, and may be on another disk
        output_dir = flag_value(argv, "output_dir") or settings.get("output_dir", "output")
        settings = settings_of_run(str(run), Path(output_dir)) | settings
    return parse(TrainConfig, argv, verb, make_config(settings, file or _("the command line")))


def settings_of_run(name: str, output_dir: Path) -> dict[str, Any]:
    """The settings that the run called `name` ("latest": the newest in `output_dir`) was begun with. Raises RunError."""
    return read_yaml(find_run(name, output_dir).config)


def parse(
    kind: type[Settings], argv: list[str], verb: str, default: Settings | None = None, about: str = ""
) -> Settings:
    """`argv` as settings of `kind`: hyphens and underscores, near names suggested; help, and the end, where it asks for that.

    `about` says what `verb` does, where it is not one of cli.COMMANDS.
    """
    check_arguments(kind, argv, verb)
    default = default or kind()
    if set(HELP) & set(argv):
        show_help(default, verb, about or COMMANDS[verb].help(), Console(highlight=False))
        raise SystemExit(OK)
    os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")
    return tyro.cli(kind, args=argv, default=default, prog=f"lorafit {verb}", use_underscores=True)
