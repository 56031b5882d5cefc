"""Which of the processes that train one run together is this one, and how are the others on this machine started?

The names in the environment are torchrun's, so that it makes no difference who started them. No tensors here.
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
LEAVE_SECONDS = 20.0  # for the others to end by themselves
TAIL_LINES, TAIL_BYTES = 3, 4000


@dataclass(frozen=True)
class RankInfo:
    """One process among `count`; `local_` counts on its own machine. Rank 0 leads: it alone writes and speaks."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0


def rank_info(environ: Mapping[str, str] = os.environ) -> RankInfo:
    """This process's place, as torchrun (or `launch_ranks` below) wrote it. Raises ConfigError when that is incomplete."""
    if "RANK" not in environ:
        return RankInfo()
    missing = [name for name in NAMES if not environ.get(name)]
    if not missing:
        with contextlib.suppress(ValueError):
            return RankInfo(*(int(environ[name]) for name in NAMES[:4]))
    raise ConfigError(
        _("RANK is set, but not all that processes need to find each other."),
        where=listed(NAMES),
        found=_("missing: {names}").format(names=listed(missing)) if missing else None,
        fix=_("Start with `torchrun --nproc_per_node N train.py ...` or `--processes N`; or unset RANK."),
    )


def environments(count: int, port: int) -> list[dict[str, str]]:
    """What each of `count` processes on this machine finds in its environment; they meet at `port`."""
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


@dataclass
class RankProcesses:
    """The processes after the first, which started them. `errors` holds what each writes to stderr."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    errors: list[IO[bytes]] = field(default_factory=list)

    def dead(self) -> tuple[int, str] | None:
        """Rank and words of one that ended otherwise than well."""
        for rank, process in enumerate(self.processes, 1):
            if process.poll():
                return rank, "\n".join([_ending(process.returncode), *self._tail(rank)])
        return None

    def _tail(self, rank: int) -> list[str]:
        file = self.errors[rank - 1]
        file.seek(max(file.seek(0, os.SEEK_END) - TAIL_BYTES, 0))
        return file.read().decode("utf-8", "replace").strip().splitlines()[-TAIL_LINES:]

    def end(self) -> None:
        """See all of them end: they do so by themselves when the first one leaves."""
        deadline = time.monotonic() + LEAVE_SECONDS
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0.0))
        for process in self.processes:
            process.kill()
            process.wait()
        for file in self.errors:
            file.close()


def no_known_death() -> tuple[int, str] | None:
    """Of processes that somebody else started, nobody here knows how they ended."""
    return None


Dead = Callable[[], tuple[int, str] | None]


@contextlib.contextmanager
def launch_ranks(count: int, port: int, command: Sequence[str] = FOLLOWER) -> Iterator[RankProcesses]:
    """Inside, processes 1 to `count` - 1 of this machine run `command`; this one is the first."""
    others = RankProcesses()
    try:
        for environ in environments(count, port)[1:]:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process is dead, closed by end()
            others.errors.append(file)
            process = subprocess.Popen(
                list(command), env=os.environ | environ, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
            others.processes.append(process)
        yield others
    finally:
        others.end()


def _ending(code: int) -> str:
    if code >= 0:
        return _("it ended with code {code}").format(code=code)
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    return _("it was ended by signal {name}").format(name=name)
