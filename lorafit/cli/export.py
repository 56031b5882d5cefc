"""The commands `export` and `verify`: an adapter for other programs, and the check of an export."""

import re
import signal
from pathlib import Path
from types import FrameType
from typing import Literal

import tyro
from pydantic import BaseModel, Field

from lorafit import api
from lorafit.cli.app import OK
from lorafit.cli.flags import split_words
from lorafit.cli.parse import parse
from lorafit.config import Folder
from lorafit.errors import ConfigError
from lorafit.exporters.base import ExportRequest
from lorafit.messages import _
from lorafit.paths import user_path
from lorafit.reporters.terminal.console import open_console
from lorafit.reporters.terminal.export import show_export, show_verified
from lorafit.reporters.terminal.status import status_line


class VerifyFlags(BaseModel):
    """Check that an export is as it was written."""

    folder: tyro.conf.Positional[list[str]] = Field([], description="Folder that `lorafit export` wrote.")
    run: str | None = Field(
        None, description="Run or adapter of the export, to measure again how the export answers beside it."
    )
    base_model: str | None = Field(None, description="Base model of that run, if it was moved.")
    output_dir: Folder = Field("output", description="Folder for runs.")
    trust_remote_code: bool = Field(
        False, description="Run code that comes with the model. Only for models whose author you trust."
    )
    lang: Literal["en", "zh"] | None = Field(None, description="Language of the messages (default: from the locale).")


def export(argv: list[str]) -> int:
    """Run `export RUN --to TARGET -o DIR`. An ended process leaves nothing behind."""
    argv = [re.sub(r"^-o(=|$)", r"--output\1", word) for word in argv]
    words, flags = split_words(ExportRequest, argv)
    request = parse(ExportRequest, flags, "export", ExportRequest.model_validate({"run": words}))
    signal.signal(signal.SIGTERM, _end)
    with status_line(open_console(stderr=True)) as say:
        exported = api.export(request, say)
    show_export(exported, open_console())
    return OK


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _again(flags: VerifyFlags) -> ExportRequest:
    """Return the request that names the run to measure beside; its `run` is empty if there is none."""
    facts = flags.model_dump(include={"base_model", "output_dir", "trust_remote_code"})
    return ExportRequest.model_validate({"run": [flags.run] if flags.run else [], **facts})


def verify(argv: list[str]) -> int:
    """Run `verify DIR`."""
    words, flags = split_words(VerifyFlags, argv)
    request = parse(VerifyFlags, flags, "verify", VerifyFlags.model_validate({"folder": words}))
    if len(words) != 1:
        fix = _("Name the folder of an export: {command}").format(command="lorafit verify DIR")
        raise ConfigError(_("Expected exactly one folder."), found=" ".join(words) or None, fix=fix)
    with status_line(open_console(stderr=True)) as say:
        found = api.verify_export(Path(user_path(words[0])), _again(request), say)
    show_verified(found, open_console())
    return OK
