"""Orders of the user to a running training: stop, pause or continue, as a file in the run's folder.

The supervisor reads the file each second, or the training process where there is no supervisor. An event acknowledges
each order: Paused, Continued or Stopped.
"""

import contextlib
import json
import os
import shlex

from lorafit.atomic import atomic_file, disk_errors, hidden_path
from lorafit.errors import RunError
from lorafit.events import Continued, Event, Finished, Paused, Stopped
from lorafit.messages import _
from lorafit.run_folders.directory import LIVE, RunDir, events_of, info_of

STOP, PAUSE, CONTINUE = "stop", "pause", "continue"
POLL_SECONDS = 1.0  # between two looks at the file


def write_order(run: RunDir, order: str) -> None:
    """Write `order` into the folder of `run`, whole or not at all. A newer order replaces one that is not yet read.

    The order names the process that owns the run, so that a later one does not obey it. Raises RunError for a run that is
    not running, and DiskError.
    """
    info = info_of(run)
    if info.state not in LIVE:
        finished = info.state == "finished"
        text = _("The run has finished. Try the result: {command}") if finished else _("Resume the run: {command}")
        command = f"lorafit {'chat' if finished else 'resume'} {shlex.quote(str(run.path))}"
        raise RunError(_("This run is not running."), where=run.path, fix=text.format(command=command))
    with disk_errors(run.path), atomic_file(run.order) as path:
        path.write_text(json.dumps({"order": order, "process": run.owner()}), "utf-8")


def take_order(run: RunDir, owner: int) -> str | None:
    """Remove the order file and return its order; None without a file, and for an order to another process."""
    taken = hidden_path(run.order, "old")  # atomic_file() in this process uses "tmp"
    try:
        run.order.rename(taken)  # an order that is written from now on stays
        facts = json.loads(taken.read_text("utf-8"))
        order, process = facts["order"], facts["process"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(taken)
    return order if process == owner and order in (STOP, PAUSE, CONTINUE) else None


def acknowledgement(run: RunDir, order: str, since: float) -> Event | None:
    """Return the event that acknowledges `order`, at or after the time `since` (seconds since 1970); None: none yet.

    A run that finished instead acknowledges it by Finished.
    """
    kinds = {STOP: (Stopped, Finished), PAUSE: (Paused, Finished), CONTINUE: (Continued,)}[order]
    return next((e for e in reversed(events_of(run)) if isinstance(e, kinds) and e.time >= since), None)


def order_text(order: str, run: RunDir) -> str:
    """Return the text of the event that acknowledges PAUSE or CONTINUE."""
    if order == PAUSE:
        return _("Paused by the user. Continue: {command}").format(
            command=f"lorafit runs continue {shlex.quote(str(run.path))}"
        )
    return _("Continued by the user.")
