"""How do the processes that train one run together agree? The seam between loop and engine and torch's collectives.

Whatever is called here is called by every rank, in the same order. One process alone agrees with itself.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from lorafit.distributed.launch import RankInfo
from lorafit.errors import EngineError
from lorafit.messages import _


class RankLost(EngineError):
    """Another process of the run died, hangs or gave up; this one's state is that after the last finished step."""

    def __init__(self, rank: int, count: int, found: object, told: bool = False) -> None:
        super().__init__(
            _("Process {rank} of 0 to {last} is lost, so the others stop too.").format(rank=rank, last=count - 1),
            found=found,
            fix=_("Go on from the last checkpoint with --resume; another number of processes learns the same."),
        )
        self.rank, self.told = rank, told  # told: by itself, before it left


class Collectives(Protocol):
    """What several processes can do together. Raises RankLost where one of them is gone."""

    place: RankInfo

    def broadcast_json(self, facts: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the leader says (JSON), on every rank."""
        ...

    def broadcast_folder(self, folder: Path | None) -> AbstractContextManager[Path | None]:
        """Inside, what the leader has in `folder`, on every rank: a copy where the disk is not the same."""
        ...

    def all_reduce_max(self, number: float) -> float:
        """The largest of the ranks' numbers."""
        ...

    def all_reduce_sum(self, number: float) -> float:
        """The sum of the ranks' numbers, in float64."""
        ...

    def all_reduce_(self, tensors: Sequence[Any]) -> None:
        """Each tensor becomes, in place, its sum over the ranks; all travel in one flat buffer."""
        ...

    def sync_oom(self) -> AbstractContextManager[None]:
        """What is done inside runs out of memory on every rank or on none."""
        ...


class SingleProcess:
    """One process."""

    place = RankInfo()

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
