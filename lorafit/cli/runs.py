"""The command `lorafit runs`: list, show, compare and remove runs."""

import difflib
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import tyro
from pydantic import Field
from rich.text import Text

from lorafit import api
from lorafit.cli.app import COMMANDS, OK
from lorafit.cli.commands import FolderFlags
from lorafit.cli.flags import split_words
from lorafit.cli.parse import parse
from lorafit.data.text_checks import visible
from lorafit.errors import ConfigError
from lorafit.messages import _
from lorafit.paths import is_stdout, user_path
from lorafit.reporters.plot import check_plot, write_plot
from lorafit.reporters.terminal.console import open_console, print_safe
from lorafit.reporters.terminal.history import show_difference, show_record
from lorafit.reporters.terminal.runs import show_runs, state_text
from lorafit.run_folders.directory import LATEST
from lorafit.run_folders.history import Record
from lorafit.units import bytes_text

Flags = TypeVar("Flags", bound=FolderFlags)


class ListFlags(FolderFlags):
    """The flags of `runs` and `runs list`."""


class ShowFlags(FolderFlags):
    """The flags of `runs show`."""

    runs: tyro.conf.Positional[list[str]] = Field([], description="Name or folder of a run, or `latest` (the default).")
    plot: str | None = Field(
        None, description="Image file to draw the curves into, e.g. curves.png (default: no image)."
    )


class DiffFlags(FolderFlags):
    """The flags of `runs diff`."""

    runs: tyro.conf.Positional[list[str]] = Field([], description="Two runs: names, folders, or `latest`.")


class RemoveFlags(FolderFlags):
    """The flags of `runs remove`."""

    runs: tyro.conf.Positional[list[str]] = Field([], description="Name or folder of a run, or `latest`.")
    yes: bool = Field(False, description="Remove without asking.")


class OrderFlags(FolderFlags):
    """The flags of `runs stop`, `runs pause` and `runs continue`."""

    runs: tyro.conf.Positional[list[str]] = Field([], description="Name or folder of a run, or `latest` (the default).")


def runs(argv: list[str]) -> int:
    """Run `runs [SUBCOMMAND] [flags]` and return the exit code; without a subcommand, list the runs."""
    name, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("list", argv)
    name = ALIASES.get(name, name)
    if name in SUBCOMMANDS:
        return SUBCOMMANDS[name].handler(rest)
    near = difflib.get_close_matches(name, SUBCOMMANDS, n=1)
    raise ConfigError(
        _("Unknown command `{name}`.").format(name=f"runs {name}"),
        found=name,
        fix=_("Did you mean `{name}`?").format(name=f"lorafit runs {near[0] if near else 'show ' + name}"),
    )


def list_(argv: list[str]) -> int:
    """Run `runs list`: print a table of the runs."""
    deeds = [f"  {name:<10}{deed.help()}" for name, deed in SUBCOMMANDS.items()]
    flags = parse(ListFlags, argv, "runs", about="\n\n".join([COMMANDS["runs"].help(), "\n".join(deeds)]))
    found = api.runs(Path(flags.output_dir))
    if found:
        show_runs(found, open_console())
    else:
        text = _("No runs in {folder} yet. Start one: {command}")
        print_safe(text.format(folder=flags.output_dir, command="lorafit train --demo"))
    return OK


def show(argv: list[str]) -> int:
    """Run `runs show [RUN]`: print one run and, with --plot, draw its curves."""
    flags = _parse(ShowFlags, argv, "show")
    (name,) = _names(flags.runs or [LATEST], 1, "show RUN")
    picture = None if flags.plot is None else user_path(flags.plot)
    if picture is not None:
        check_plot(picture)
    record = api.run_record(name, Path(flags.output_dir))
    console = open_console(stderr=picture is not None and is_stdout(picture))
    show_record(record, console)
    if picture is not None:
        write_plot(record, picture)
        console.print(Text(_("✓ curves: {path}").format(path=picture)), soft_wrap=True)
    return OK


def diff(argv: list[str]) -> int:
    """Run `runs diff RUN RUN`: print the differences between two runs."""
    flags = _parse(DiffFlags, argv, "diff")
    names = _names(flags.runs, 2, "diff RUN RUN")
    one, other = (api.run_record(name, Path(flags.output_dir)) for name in names)
    show_difference(one, other, open_console())
    return OK


def remove(argv: list[str]) -> int:
    """Run `runs remove RUN`: delete a run's folder, after a question unless --yes is given."""
    flags = _parse(RemoveFlags, argv, "remove")
    (name,) = _names(flags.runs, 1, "remove RUN")
    record = api.run_record(name, Path(flags.output_dir))
    api.check_removable(record)
    if flags.yes or _confirmed(record):
        api.remove_run(record)
        print_safe(_("✓ removed: {path}").format(path=record.run.path))
    else:
        print_safe(_("Nothing was removed."))
    return OK


def order(argv: list[str], name: str) -> int:
    """Run `runs stop|pause|continue [RUN]`: order a running training, and print how it acknowledged."""
    flags = _parse(OrderFlags, argv, name)
    (run,) = _names(flags.runs or [LATEST], 1, f"{name} RUN")
    folder = Path(flags.output_dir)
    path = api.run_record(run, folder).run.path
    done = api.order_run(str(path), name, folder)
    if done is None:
        text = _("Order written: {order}. The training obeys it after the current step or evaluation: {path}")
        print_safe(text.format(order=name, path=path))
        return OK
    texts = {
        "stopped": _("✓ Stopped after step {step}. Resume: {command}"),
        "paused": _("✓ Paused after step {step}. Continue: {command}"),
        "continued": _("✓ Training continues after step {step}: {command}"),
        "finished": _("✓ The run finished first. Try the result: {command}"),
    }
    commands = {"stopped": "resume", "paused": "runs continue", "continued": "runs show", "finished": "chat"}
    command = f"lorafit {commands[done.name]} {shlex.quote(str(path))}"
    print_safe(texts[done.name].format(step=done.step, command=command))
    return OK


@dataclass(frozen=True)
class Subcommand:
    """A subcommand of `runs`: `handler` runs it and returns the exit code, `help` returns its line in the help."""

    handler: Callable[[list[str]], int]
    help: Callable[[], str]


SUBCOMMANDS = {
    "list": Subcommand(list_, lambda: _("all runs, latest first (same as `lorafit runs`)")),
    "show": Subcommand(show, lambda: _("one run: settings, plan, losses, curves, next commands")),
    "diff": Subcommand(diff, lambda: _("two runs: differences in settings and plan, and results")),
    "stop": Subcommand(partial(order, name="stop"), lambda: _("save a running training and stop it")),
    "pause": Subcommand(partial(order, name="pause"), lambda: _("save a running training and let it wait")),
    "continue": Subcommand(partial(order, name="continue"), lambda: _("continue a paused training")),
    "remove": Subcommand(remove, lambda: _("delete a run with its whole folder")),
}
ALIASES = {"compare": "diff", "ls": "list", "rm": "remove"}


def _parse(kind: type[Flags], argv: list[str], deed: str) -> Flags:
    names, flags = split_words(kind, argv)
    return parse(kind, flags, f"runs {deed}", kind.model_validate({"runs": names}), SUBCOMMANDS[deed].help())


def _names(names: list[str], count: int, usage: str) -> list[str]:
    if len(names) == count:
        return names
    raise ConfigError(
        _("Expected exactly one run.") if count == 1 else _("Expected exactly {count} runs.").format(count=count),
        found=" ".join(names) or None,
        fix=_("Run `{command}`; `lorafit runs` lists all runs.").format(command=f"lorafit runs {usage}"),
    )


def _confirmed(record: Record) -> bool:
    """Ask the user whether to remove the run. Raise ConfigError if stdin is not a terminal."""
    if not sys.stdin.isatty():
        raise ConfigError(
            _("Cannot ask before removing this run: the input is not a terminal."),
            where=record.run.path,
            fix=_("Add --yes to remove it without a question."),
        )
    question = _("Permanently remove {path} ({size}, {state})? [y/N] ")
    state = state_text(record.info.state)
    try:
        answer = input(visible(question.format(path=record.run.path, size=bytes_text(record.bytes), state=state)))
    except EOFError:
        return False
    return answer.strip().lower() in ("y", "yes", "是")
