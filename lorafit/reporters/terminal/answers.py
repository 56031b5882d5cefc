"""Writing of answers as JSON Lines to a file (atomically) or to stdout; progress goes to stderr."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import track

from lorafit.atomic import disk_errors, ensure_writable
from lorafit.errors import DiskError
from lorafit.messages import _
from lorafit.reporters.terminal.encoding import writable_json


def write_answers(answers: Iterator[dict[str, str]], total: int, output: str | None, notes: Console) -> None:
    """Write each of `answers` as a line to the file `output` (None: stdout). Raise DiskError."""
    watched = (
        track(answers, _("Generating answers"), total, console=notes)
        if notes.is_interactive
        else _with_counts(answers, total, notes)
    )
    with _open_output(output) as file:
        for answer in watched:
            file.write(writable_json(json.dumps(answer, ensure_ascii=False), file) + "\n")
            file.flush()


def check_output(output: str | None) -> None:
    """Raise DiskError unless answers can be written to the file `output`. Call this before loading the model."""
    if output is None:
        return
    path = Path(output).expanduser()
    if path.is_dir():
        raise DiskError(
            _("The answers cannot be written to a folder."), where=path, fix=_("Give a file name with --output.")
        )
    try:
        ensure_writable(path.parent)
    except DiskError as error:
        error.fix = _("Use --output to name a file in a folder you can write to.")
        raise


@contextmanager
def _open_output(output: str | None) -> Iterator[TextIO]:
    """Yield stdout, or a .part file that is renamed to `output` at the end and is kept after an interruption."""
    if output is None:
        yield sys.stdout
        return
    path = Path(output).expanduser()
    part = path.with_name(path.name + ".part")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as file:
            yield file
        part.replace(path)


def _with_counts(answers: Iterator[dict[str, str]], total: int, notes: Console) -> Iterator[dict[str, str]]:
    """Yield `answers` and print their count about 20 times."""
    every = max(total // 20, 1)
    for count, answer in enumerate(answers, 1):
        yield answer
        if count % every == 0 or count == total:
            notes.print(_("answered: {count}/{total}").format(count=count, total=total))
