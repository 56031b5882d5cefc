"""The rank of this process within a run, and the launch of the run's other processes on this machine.

The environment variables are torchrun's, so `launch_ranks` and torchrun are interchangeable. No tensors here.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from lorafit.errors import ConfigError
from lorafit.messages import _, listed

FOLLOWER = (sys.executable, "-m", "lorafit.training.follower")
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LEAVE_SECONDS = 20.0  # time for the other processes to exit by themselves
TAIL_LINES, TAIL_BYTES = 3, 4000


@dataclass(frozen=True)
class RankInfo:
    """The rank of one process among `count`; `local_` fields count on its machine.

    Rank 0 leads: it alone writes the run folder and reports to the user.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def leads(self) -> bool:
        """True for rank 0."""
        return self.rank == 0


def rank_info(environ: Mapping[str, str] = os.environ) -> RankInfo:
    """Return this process's rank, as torchrun or `launch_ranks` wrote it to the environment.

    Without RANK the process is the only one. Raise ConfigError if the variables are incomplete.
    """
    if "RANK" not in environ:
        return RankInfo()
    missing = [name for name in NAMES if not environ.get(name)]
    if not missing:
        with contextlib.suppress(ValueError):
            return RankInfo(*(int(environ[name]) for name in NAMES[:4]))
    raise ConfigError(
        _("RANK is set, but the variables of a distributed run are incomplete or invalid."),
        where=listed(NAMES),
        found=_("missing: {names}").format(names=listed(missing)) if missing else None,
        fix=_(
            "Unset RANK (several processes: add `--processes N`), or start with `torchrun --nproc_per_node N train.py ...`."
        ),
    )


def rank_environments(count: int, port: int) -> list[dict[str, str]]:
    """Return the environment variables of each of `count` processes on this machine, which meet at `port`."""
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


@dataclass
class RankProcesses:
    """The processes that the first one started: ranks 1 and up. `output_files` holds the stdout and stderr of each."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    output_files: list[IO[bytes]] = field(default_factory=list)

    def first_failure(self) -> tuple[int, str] | None:
        """Return the rank of a failed process, with its exit reason and last lines of output; None if none failed."""
        for rank, process in enumerate(self.processes, 1):
            if process.poll():
                return rank, "\n".join([_exit_text(process.returncode), *self._tail(rank)])
        return None

    def _tail(self, rank: int) -> list[str]:
        file = self.output_files[rank - 1]
        file.seek(max(file.seek(0, os.SEEK_END) - TAIL_BYTES, 0))
        return file.read().decode("utf-8", "replace").strip().splitlines()[-TAIL_LINES:]

    def wait_or_kill(self) -> None:
        """Wait until all processes exit, as they do when the first one leaves; kill the rest after LEAVE_SECONDS."""
        deadline = time.monotonic() + LEAVE_SECONDS
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0.0))
        for process in self.processes:
            process.kill()
            process.wait()
        for file in self.output_files:
            file.close()


def no_known_failure() -> tuple[int, str] | None:
    """Return None: this process cannot know how processes ended that another program (torchrun) started."""
    return None


FindFailure = Callable[[], tuple[int, str] | None]


@contextlib.contextmanager
def launch_ranks(count: int, port: int, command: Sequence[str] = FOLLOWER) -> Iterator[RankProcesses]:
    """Run `command` as ranks 1 to `count` - 1 on this machine inside the context; this process is rank 0."""
    others = RankProcesses()
    try:
        for environ in rank_environments(count, port)[1:]:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process is dead, closed by end()
            others.output_files.append(file)
            process = subprocess.Popen(
                list(command), env=os.environ | environ, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
            others.processes.append(process)
        yield others
    finally:
        others.wait_or_kill()


def _exit_text(code: int) -> str:
    if code >= 0:
        return _("the process exited with code {code}").format(code=code)
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    return _("the process was ended by signal {name}").format(name=name)
