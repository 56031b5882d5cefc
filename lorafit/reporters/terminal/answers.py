"""Writing of answers as JSON Lines to a file or to stdout; progress goes to stderr."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import track

from lorafit.messages import _
from lorafit.paths import is_stdout, is_stream, open_for_user
from lorafit.reporters.terminal.encoding import writable_json


def write_answers(answers: Iterator[dict[str, str]], total: int, output: Path | None, notes: Console) -> None:
    """Write each of `answers` as a line to the file `output` (None or "-": stdout). Raise DiskError.

    If this is interrupted, the answers so far are in a file beside it, with the ending .part.
    """
    watched = (
        track(answers, _("Generating answers"), total, console=notes)
        if notes.is_interactive
        else _with_counts(answers, total, notes)
    )
    if output is None or is_stdout(output):
        for answer in watched:
            print(writable_json(json.dumps(answer, ensure_ascii=False), sys.stdout), flush=True)
        return
    lines: list[bytes] = []
    with open_for_user(output, "--output") as file:
        try:
            for answer in watched:
                lines.append(json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
                file.write(lines[-1])
                file.flush()
        except BaseException:
            if lines and not is_stream(output):
                output.with_name(f"{output.name}.part").write_bytes(b"".join(lines))
            raise


def _with_counts(answers: Iterator[dict[str, str]], total: int, notes: Console) -> Iterator[dict[str, str]]:
    """Yield `answers` and print their count about 20 times."""
    every = max(total // 20, 1)
    for count, answer in enumerate(answers, 1):
        yield answer
        if count % every == 0 or count == total:
            notes.print(_("answered: {count}/{total}").format(count=count, total=total))
