"""A process for each family, forked from a server that has imported the libraries: a crash or a hang is an outcome."""

import importlib
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from matrix.outcome import Outcome, without_paths

IMPORTS = [
    "torch", "transformers", "transformers.modeling_utils", "transformers.models.auto.modeling_auto", "peft", "lorafit",
    "lorafit.engines.torch.engine", "lorafit.training.preview", "matrix.examine",
]  # fmt: skip
SECONDS = 240.0  # after which a family counts as hanging
TAIL_LINES = 12
Row = dict[str, Any]


def examine_all(names: Sequence[str], jobs: int) -> Iterator[Row]:
    """Yield the row of each family as it is done, `jobs` at a time.

    The module search path of this process must be in PYTHONPATH: the server starts anew.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    with ThreadPoolExecutor(jobs) as pool:
        for future in as_completed([pool.submit(examine_one, context, name) for name in names]):
            yield future.result()


def examine_one(context: Any, name: str) -> Row:
    """Examine one family in a process of its own and return its row: the outcomes by stage."""
    with tempfile.TemporaryDirectory(prefix="lorafit-families-") as folder:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_examine, args=(name, Path(folder), theirs))
        child.start()
        theirs.close()
        row, stage, late = _collect(ours, child)
        child.join()
        if late or child.exitcode:
            row[stage] = _lost(
                Path(folder), stage, f"no end after {SECONDS:.0f} s" if late else _ending(child.exitcode)
            )
    return {"name": name, **{stage: vars(outcome) for stage, outcome in row.items()}}


def _examine(name: str, scratch: Path, results: Connection) -> None:
    """Import the libraries here, in the child, where the server has them already: this process needs none of them."""
    importlib.import_module("matrix.examine").run(name, scratch, results)


def _collect(results: Connection, child: Any) -> tuple[dict[str, Outcome], str, bool]:
    """Return the outcomes by stage, the stage that began last, and whether the child hung and was killed."""
    row: dict[str, Outcome] = {}
    stage = "make"
    while True:
        if not results.poll(SECONDS):
            child.kill()
            return row, stage, True
        try:
            name, outcome = results.recv()
        except EOFError:
            return row, stage, False
        if name == "begin":
            stage = outcome
        else:
            row[name] = outcome


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _lost(folder: Path, stage: str, ending: str) -> Outcome:
    log = folder / "log"
    tail = log.read_text("utf-8", "replace").splitlines()[-TAIL_LINES:] if log.exists() else []
    return Outcome("crash", "CRASH", {"error": ending, "log": [without_paths(line, folder) for line in tail]})


def import_from_here(folders: Sequence[Path]) -> None:
    """Let processes that start from now on import modules of `folders`, and none of the working directory."""
    old = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*map(str, folders), *([old] if old else [])])
    os.environ["PYTHONSAFEPATH"] = "1"  # else the server finds another copy of lorafit in the working directory
