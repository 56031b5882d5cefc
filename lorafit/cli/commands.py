"""Commands at the terminal: each one parses its arguments, calls lorafit.api and shows the result."""

import contextlib
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field
from rich.console import Console
from rich.text import Text

from lorafit import api
from lorafit.cli.app import OK, USER
from lorafit.cli.flags import split_words
from lorafit.cli.parse import parse, train_config
from lorafit.config import Folder
from lorafit.data.report_request import DataRequest
from lorafit.errors import LorafitError
from lorafit.evaluation.chat_request import ChatRequest, answers, check_request
from lorafit.evaluation.compare_request import CompareRequest, page_path
from lorafit.evaluation.model_request import read_questions
from lorafit.events import Event, Stopped
from lorafit.messages import _, set_language
from lorafit.paths import check_for_user, is_stdout, user_path, write_for_user
from lorafit.progress import ignore_progress
from lorafit.reporters.html import compare as compare_page
from lorafit.reporters.html import data as data_page
from lorafit.reporters.html.run import RunPageReporter
from lorafit.reporters.notify import Notifier
from lorafit.reporters.tensorboard import TensorBoardReporter
from lorafit.reporters.terminal.answers import write_answers
from lorafit.reporters.terminal.chat import stream, talk
from lorafit.reporters.terminal.compare import show_comparison
from lorafit.reporters.terminal.console import open_console
from lorafit.reporters.terminal.data import show_data, show_figures
from lorafit.reporters.terminal.doctor import show_calibrations, show_report
from lorafit.reporters.terminal.encoding import writable_json
from lorafit.reporters.terminal.run import TerminalReporter
from lorafit.reporters.terminal.status import status_line
from lorafit.reporters.text.data_json import data_json
from lorafit.run_folders.directory import LATEST

OUTPUT = "--output"
Reporter = TerminalReporter | TensorBoardReporter | RunPageReporter | Notifier


class FolderFlags(BaseModel):
    """Flags of the commands that read the folder of runs."""

    output_dir: Folder = Field("output", description="Folder for runs.")
    lang: Literal["en", "zh"] | None = Field(None, description="Language of the messages (default: from the locale).")


with warnings.catch_warnings():  # the field `json` shadows a deprecated method of pydantic
    warnings.simplefilter("ignore", UserWarning)

    class DoctorFlags(FolderFlags):
        """Flags of `doctor`, which reports the machine, what works on it, what is missing and how to fix it."""

        json: bool = Field(  # type: ignore[assignment]
            False,
            description="Print everything as JSON, for a bug report; contains no user names, home folders or access tokens.",
        )
        calibrations: bool = Field(
            False, description="Show the measurements of earlier runs on this machine, which plans use."
        )


def train(argv: list[str], verb: str = "train") -> int:
    """Run `train [BUNDLE] [flags]` and return the exit code. A bundle is unpacked and its run resumed."""
    config = train_config(argv, verb)
    return show_events(api.train(config), notifier=Notifier(config.notify))


def resume(argv: list[str]) -> int:
    """Run `resume [RUN] [flags]`, which is `train --resume RUN [flags]`; without RUN, resume the latest run."""
    named = argv and not argv[0].startswith("-")
    return train(["--resume", *argv] if named else ["--resume", LATEST, *argv], "resume")


def show_events(events: Iterable[Event], console: Console | None = None, notifier: Notifier | None = None) -> int:
    """Pass `events` to the terminal and the other reporters as they arrive, and return the exit code."""
    terminal = TerminalReporter(console)
    readers: tuple[Reporter, ...] = (terminal, TensorBoardReporter(), RunPageReporter(), notifier or Notifier())
    code = OK
    try:
        for event in events:
            for reader in readers:
                _send_event(reader, event)
            if isinstance(event, Stopped):
                code = 128 + event.signal
    except LorafitError as error:
        terminal.show_error(error)
        code = USER
    finally:
        for reader in readers:
            reader.close()
    return code


def _send_event(reader: Reporter, event: Event) -> None:
    """Pass `event` to `reader`. A closed terminal or pipe counts as SIGHUP: training finishes its step and saves."""
    try:
        reader.on_event(event)
    except (OSError, SystemExit):  # rich turns a broken pipe into SystemExit
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # no handler would save the run
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        signal.raise_signal(signal.SIGHUP)


def chat(argv: list[str]) -> int:
    """Run `chat [RUN] [flags]`: answer a prompt or a file of questions, or start an interactive chat."""
    names, flags = split_words(ChatRequest, argv)
    request = parse(ChatRequest, flags, "chat", ChatRequest.model_validate({"adapter": names}))
    check_request(request)
    output = None if request.output is None else user_path(request.output)
    if output is not None:
        check_for_user(output, OUTPUT)
    questions = None if request.test_file is None else read_questions(user_path(request.test_file))
    notes = open_console(stderr=True)
    with notes.status(_("Getting ready ...")) if notes.is_interactive else contextlib.nullcontext() as status:
        chat = api.open_chat(request, (lambda text: status.update(Text(text))) if status else ignore_progress)
    if request.prompt is not None:
        stream(chat, request.prompt)
    elif questions is not None:
        chat.on_note = lambda text: notes.print(Text(f"⚠ {text}"), soft_wrap=True)
        write_answers(answers(chat, questions), len(questions), output, notes)
    else:
        talk(chat)
    return OK


def compare(argv: list[str]) -> int:
    """Run `compare RUN... [flags]`. The page is written to -o FILE (default: see `page_path`)."""
    argv = [re.sub(r"^-o(=|$)", r"--output\1", word) for word in argv]
    names, flags = split_words(CompareRequest, argv)
    request = parse(CompareRequest, flags, "compare", CompareRequest.model_validate({"adapters": names}))
    path = page_path(request)
    check_for_user(path, OUTPUT)
    with status_line(open_console(stderr=True)) as say:
        comparison = api.compare(request, say)
    write_for_user(path, compare_page.comparison_page(comparison), OUTPUT)
    console = open_console(stderr=is_stdout(path))
    show_comparison(comparison, console)
    console.print(Text("\n" + _("✓ page: {path}").format(path=path)), soft_wrap=True)
    return OK


def data(argv: list[str]) -> int:
    """Run `data FILE... [--json] [flags]`. With -o FILE, write the report as a page and print only the figures."""
    argv = [re.sub(r"^-o(=|$)", r"--output\1", word) for word in argv]
    files, flags = split_words(DataRequest, argv)
    request = parse(DataRequest, flags, "data", DataRequest.model_validate({"files": files}))
    page = None if request.output is None else user_path(request.output)
    if page is not None:
        check_for_user(page, OUTPUT)
    with status_line(open_console(stderr=True)) as say:
        report = api.data_report(request, say)
    console = open_console()
    if request.json:
        print(writable_json(data_json(report), sys.stdout))
    elif page is None:
        show_data(report, console)
    else:
        write_for_user(page, data_page.data_page(report), OUTPUT)
        console = open_console(stderr=is_stdout(page))
        show_figures(report, console)
        console.print(Text("\n" + _("✓ report: {path}").format(path=page)), soft_wrap=True)
    return OK


def doctor(argv: list[str]) -> int:
    """Run `doctor [flags]`. Return USER if a finding means that training cannot work."""
    flags = parse(DoctorFlags, argv, "doctor")
    if flags.calibrations:
        show_calibrations(api.calibrations(), open_console())
        return OK
    if flags.json and flags.lang is None:
        set_language("en")  # other people read a bug report
    notes = open_console(stderr=True)
    with notes.status(_("Checking this machine ...")) if notes.is_interactive else contextlib.nullcontext():
        report = api.doctor(Path(flags.output_dir))
    if flags.json:
        print(writable_json(report.to_json(), sys.stdout))
    else:
        show_report(report, open_console())
    return OK if report.well else USER
