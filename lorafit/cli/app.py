"""The `lorafit` command: dispatch to subcommands, error display and exit codes.

The module imports no heavy package, so that --help is fast. Exit codes: 0 success, 2 an error that the user can fix,
1 a bug in lorafit (with its traceback), 128 + signal number after a signal.
"""

import contextlib
import difflib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import lorafit
from lorafit.atomic import system_error
from lorafit.errors import ConfigError, LorafitError
from lorafit.messages import LANGUAGES, _, listed, set_language
from lorafit.paths import require_utf8_name
from lorafit.registry import Entry, load
from lorafit.reporters.terminal.console import open_console, print_safe
from lorafit.reporters.terminal.encoding import replace_missing_streams, use_fallbacks
from lorafit.reporters.terminal.errors import show_error

OK, BUG, USER = 0, 1, 2
LOADING = (
    "train",
    "resume",
    "chat",
    "compare",
    "export",
    "verify",
)  # commands whose libraries open folders by names in UTF-8
FOLDER_FLAGS = ("output_dir", "model_name", "base_model", "lora_weights", "init_adapter")
TEXT_FLAGS = {"--system_prompt", "--system-prompt", "--prompt", "--field_map", "--field-map"}


@dataclass(frozen=True)
class Command:
    """A command of the program.

    `entry` names the function that takes the arguments after the command's name and returns the exit code. `help` returns
    the command's line in the overview.
    """

    entry: Entry
    help: Callable[[], str]


PACKAGES = "pip install -r requirements.txt"


def _face(name: str) -> Entry:
    return Entry(f"lorafit.cli.commands:{name}", PACKAGES)


COMMANDS = {
    "train": Command(_face("train"), lambda: _("train an adapter (LoRA)")),
    "resume": Command(_face("resume"), lambda: _("resume a run: the latest, or the one named")),
    "chat": Command(_face("chat"), lambda: _("chat with a model, or have it answer a prompt or a file")),
    "compare": Command(
        _face("compare"), lambda: _("compare with the base model: validation loss, answers side by side")
    ),
    "data": Command(_face("data"), lambda: _("inspect data: formats, rejected rows, duplicates, lengths, samples")),
    "plan": Command(
        Entry("lorafit.cli.plan:plan", PACKAGES),
        lambda: _("show the plan before a run: what fits, how long it takes, and why"),
    ),
    "machines": Command(
        Entry("lorafit.cli.plan:machines", PACKAGES), lambda: _("list the machines known to `lorafit plan --machine`")
    ),
    "runs": Command(Entry("lorafit.cli.runs:runs", PACKAGES), lambda: _("list, show, diff or remove runs")),
    "export": Command(
        Entry("lorafit.cli.export:export", PACKAGES),
        lambda: _("export an adapter for other programs, and check the result"),
    ),
    "verify": Command(
        Entry("lorafit.cli.export:verify", PACKAGES), lambda: _("check that an export is as it was written")
    ),
    "bundle": Command(
        Entry("lorafit.cli.transfer:bundle", PACKAGES),
        lambda: _("bundle a run for another machine (there: `lorafit train run.zip`)"),
    ),
    "cloud": Command(
        Entry("lorafit.cli.transfer:cloud", PACKAGES),
        lambda: _("prepare a run for Colab, Kaggle, SageMaker and others"),
    ),
    "fetch": Command(
        Entry("lorafit.cli.transfer:fetch", PACKAGES), lambda: _("fetch the result of a run on another machine")
    ),
    "doctor": Command(_face("doctor"), lambda: _("check this machine and report problems")),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name; None: sys.argv) and return the exit code."""
    argv = _decoded(sys.argv[1:] if argv is None else argv)
    language = flag_value(argv, "lang")
    set_language(language if language in LANGUAGES else None)
    replace_missing_streams()
    use_fallbacks()
    try:
        return _run(argv)
    except BrokenPipeError:  # the reader (e.g. `| head`) exited
        return 128 + signal.SIGPIPE
    except OSError:  # stderr cannot take the error
        return USER
    finally:
        _flush()


def _run(argv: list[str]) -> int:
    """Run the command line, show the error that ends it, and return the exit code."""
    try:
        code = _command(argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as done:  # tyro: 0 after --help, 2 after a wrong flag
        return done.code if isinstance(done.code, int) else USER
    except BrokenPipeError:
        raise
    except Exception as error:
        known = error if isinstance(error, LorafitError) else system_error(error)
        if known is not None:
            show_error(known, open_console(stderr=True))
            return USER
        print_safe(traceback.format_exc(), stderr=True)
        print_safe(
            _("This is a bug in lorafit, not a mistake of yours. Please report it with the lines above."), stderr=True
        )
        return BUG


def _flush() -> None:
    """Flush stdout and stderr. What cannot be written is dropped, so that Python does not fail at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _command(argv: list[str]) -> int:
    argv = _language_last(argv)
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("--version", "-V"):
        print(f"lorafit {lorafit.__version__}")
        return OK
    if name in ("--help", "-h"):
        print(overview())
        return OK
    if name.replace("-", "_") == "__print_completion":
        print(load(Entry("lorafit.cli.completion:script", PACKAGES))(rest[0] if rest else ""), end="")
        return OK
    if name in COMMANDS:
        _require_folder()
        if name in LOADING:
            _check_folders(rest)
        code: int = load(COMMANDS[name].entry)(rest)
        return code
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    raise ConfigError(
        _("Unknown command `{name}`.").format(name=name),
        found=name,
        fix=_("Did you mean `{name}`?").format(name=near[0])
        if near
        else _("Use one of these commands: {names}.").format(names=listed(COMMANDS)),
    )


def _require_folder() -> None:
    try:
        os.getcwd()
    except OSError as error:
        fix = _("Change to a folder that exists, e.g. {command}, and run the command again.").format(command="cd ~")
        raise ConfigError(_("The current folder cannot be used."), found=error, fix=fix) from None


def _decoded(argv: list[str]) -> list[str]:
    """Return `argv` with the values of TEXT_FLAGS in UTF-8 where the locale is ASCII; paths stay as they are."""

    def text(word: str) -> str:
        return word if word.isprintable() else word.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    pairs = zip(["", *argv], argv, strict=False)
    return [text(word) if {before, word.partition("=")[0]} & TEXT_FLAGS else word for before, word in pairs]


def _check_folders(argv: list[str]) -> None:
    """Raise ConfigError if `argv` names a folder that the libraries would look for under another name."""
    words = [argv[0] if argv and not argv[0].startswith("-") else None, *(flag_value(argv, n) for n in FOLDER_FLAGS)]
    for word in words:
        require_utf8_name(word or "")


def _language_last(argv: list[str]) -> list[str]:
    """Return `argv` with a --lang before the command moved to its end, where the command reads it."""
    if not argv or argv[0].partition("=")[0] != "--lang":
        return argv
    count = 1 if "=" in argv[0] else 2
    rest, flag = argv[count:], argv[:count]
    if not rest or rest[0] not in COMMANDS:  # the overview has no flags; main() has set the language
        return rest
    return [*rest, *flag]


def overview() -> str:
    """Return the text of `lorafit --help`."""
    lines = [_("LoRA fine-tuning that fits your machine."), "", _("usage: lorafit COMMAND [flags]"), ""]
    width = max(map(len, COMMANDS)) + 2
    lines += [f"  {name:<{width}}{command.help()}" for name, command in COMMANDS.items()]
    more = [
        _("`lorafit COMMAND --help` lists its flags; `lorafit --version` shows the version."),
        _("Tab completion of commands, flags and runs:"),
        "  lorafit --print_completion bash > ~/.lorafit.bash && echo 'source ~/.lorafit.bash' >> ~/.bashrc",
        "  lorafit --print_completion zsh > ~/.lorafit.zsh && echo 'source ~/.lorafit.zsh' >> ~/.zshrc",
    ]
    return "\n".join([*lines, "", *more])


def flag_value(argv: list[str], name: str) -> str | None:
    """Return the value of the flag --name in `argv`, before `argv` is parsed; None without the flag.

    The last occurrence counts. The value is "" if none follows the flag.
    """
    value = None
    for place, word in enumerate(argv):
        flag, equals, behind = word.partition("=")
        if flag.startswith("--") and flag[2:].replace("-", "_") == name:
            following = argv[place + 1] if place + 1 < len(argv) else "--"
            value = behind if equals else "" if following.startswith("--") else following
    return value
