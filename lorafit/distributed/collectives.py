"""Collective operations of the processes of one run: the interface of loop and engine to torch's collectives.

Every rank must call every operation, in the same order. `SINGLE_PROCESS` serves a run with one process.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from lorafit.distributed.launch import RankInfo
from lorafit.errors import EngineError
from lorafit.messages import _


class RankLost(EngineError):
    """Another process of the run died, hangs or gave up; this process's state is that after the last finished step."""

    def __init__(self, rank: int, count: int, found: object, told: bool = False) -> None:
        super().__init__(
            _("Process {rank} (of 0 to {last}) exited or does not respond, so the others stop.").format(
                rank=rank, last=count - 1
            ),
            found=found,
            fix=_(
                "Resume from the last checkpoint with --resume; a different number of processes gives the same result."
            ),
        )
        self.rank, self.self_reported = rank, told  # told: the lost process itself reported why, before it left


class Collectives(Protocol):
    """The collective operations of a run's processes. Each raises RankLost if a process is gone.

    `own_rank` is the rank of this process.
    """

    own_rank: RankInfo

    def broadcast_json(self, facts: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the leader's `facts` (JSON) on every rank."""
        ...

    def broadcast_folder(self, folder: Path | None) -> AbstractContextManager[Path | None]:
        """Provide the leader's `folder` on every rank inside the context: a copy where the disk is not shared."""
        ...

    def all_reduce_max(self, number: float) -> float:
        """Return the largest of the ranks' numbers."""
        ...

    def all_reduce_sum(self, number: float) -> float:
        """Return the sum of the ranks' numbers, in float64."""
        ...

    def all_reduce_(self, tensors: Sequence[Any]) -> None:
        """Replace each tensor in place by its sum over the ranks; one flat buffer carries all tensors."""
        ...

    def sync_oom(self) -> AbstractContextManager[None]:
        """Raise OutOfMemory on every rank if it occurs inside the context on any rank."""
        ...


class SingleProcess:
    """The collectives of a run with one process: each returns its argument."""

    own_rank = RankInfo()

    def broadcast_json(self, facts: dict[str, Any] | None = None) -> dict[str, Any]:
        return facts or {}

    def broadcast_folder(self, folder: Path | None) -> AbstractContextManager[Path | None]:
        return nullcontext(folder)

    def all_reduce_max(self, number: float) -> float:
        return number

    def all_reduce_sum(self, number: float) -> float:
        return number

    def all_reduce_(self, tensors: Sequence[Any]) -> None:
        pass

    def sync_oom(self) -> AbstractContextManager[None]:
        return nullcontext()


SINGLE_PROCESS: Collectives = SingleProcess()
