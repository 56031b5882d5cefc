"""Collectives between the processes of one run: gloo between CPUs, NCCL between GPUs, and no pickle.

Every wait also checks the heartbeats of the other ranks. A lost process therefore ends a run with an error and never
hangs it.
"""

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from lorafit.distributed.collectives import RankLost
from lorafit.distributed.launch import FindFailure, RankInfo, launch_ranks, no_known_failure, rank_info
from lorafit.engines.base import OutOfMemory
from lorafit.engines.torch.heartbeat import Heartbeat
from lorafit.errors import EngineError
from lorafit.messages import _

MEET_SECONDS = 600.0  # for all processes to join
WAIT_SECONDS = 3600.0  # for a live process to finish its share of a step
LEAVE_SECONDS = 20.0
PIECE = 1 << 26  # bytes of a file in one all-reduce
STORES: Any = dist  # has the store classes, but its type stubs lack them
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


class TorchCollectives:
    """The Collectives protocol (distributed/collectives.py) over torch.distributed's default group."""

    def __init__(self, here: RankInfo, store: Any, heartbeat: Heartbeat, waiting: Callable[[], None]) -> None:
        self.own_rank, self.store, self.heartbeat, self.waiting = here, store, heartbeat, waiting
        self._broadcasts = 0
        # Kept between steps: a failed allocation on one rank alone would leave the other ranks waiting.
        self._flat: Tensor | None = None

    def broadcast_json(self, facts: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the leader's `facts` (JSON) on every rank."""
        self._broadcasts += 1
        key = f"told/{self._broadcasts}"
        if self.own_rank.leads:
            self.store.set(key, json.dumps(facts))
        with self._connected():
            while not self.store.check([key]):
                self._wait(0.02)
            found: dict[str, Any] = json.loads(self.store.get(key))
            return found

    @contextlib.contextmanager
    def broadcast_folder(self, folder: Path | None) -> Iterator[Path | None]:
        """Yield a folder with the leader's files on every rank.

        It is `folder` itself if every rank finds it on its disk, else a temporary copy on all ranks except the leader.
        """
        if not self.all_reduce_max(float(folder is not None and not folder.is_dir())):
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix="lorafit-") as place:
            copy = Path(place)
            found = sorted(p for p in folder.iterdir() if p.is_file()) if folder and self.own_rank.leads else []
            sizes = self.broadcast_json({path.name: path.stat().st_size for path in found})
            for name, size in sizes.items():
                self._copy(folder / name if folder and self.own_rank.leads else copy / name, size)
            yield folder if self.own_rank.leads else copy

    def _copy(self, path: Path, size: int) -> None:
        """Send the leader's file to all ranks, by an all-reduce to which the other ranks add zeros."""
        for start in range(0, size, PIECE):
            piece = torch.zeros(min(PIECE, size - start), dtype=torch.uint8)
            if self.own_rank.leads:
                with path.open("rb") as file:
                    file.seek(start)
                    file.readinto(piece.numpy())  # type: ignore[arg-type]
            self._reduce(piece, dist.ReduceOp.SUM)
            if not self.own_rank.leads:
                with path.open("ab") as file:
                    file.write(piece.numpy().tobytes())

    def all_reduce_max(self, number: float) -> float:
        """Return the largest of the ranks' numbers."""
        return self._reduced(number, dist.ReduceOp.MAX)

    def all_reduce_sum(self, number: float) -> float:
        """Return the sum of the ranks' numbers, in float64."""
        return self._reduced(number, dist.ReduceOp.SUM)

    def all_reduce_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, in place; all are sent in one flat buffer."""
        size = sum(tensor.numel() for tensor in tensors)
        if self._flat is None or self._flat.numel() != size:
            self._flat = tensors[0].new_empty(size)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors], out=self._flat)
        self._reduce(flat, dist.ReduceOp.SUM)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    @contextlib.contextmanager
    def sync_oom(self) -> Iterator[None]:
        """Raise OutOfMemory on every rank if one rank ran out of memory inside."""
        problem: OutOfMemory | None = None
        try:
            yield
        except OutOfMemory as error:
            problem = error
        if self.all_reduce_max(float(problem is not None)):
            raise problem or OutOfMemory(_("Out of memory in another process."))

    def _reduced(self, number: float, how: dist.ReduceOp.RedOpType) -> float:
        tensor = torch.tensor([number], dtype=torch.float64)
        self._reduce(tensor, how)
        return float(tensor)

    def _reduce(self, tensor: Tensor, how: dist.ReduceOp.RedOpType) -> None:
        with self._connected():
            work: Any = dist.all_reduce(tensor, how, async_op=True)
            while not work.is_completed():
                self._wait(1e-4)
            work.wait()

    def _wait(self, seconds: float) -> None:
        self.heartbeat.check()
        self.waiting()
        time.sleep(seconds)

    @contextlib.contextmanager
    def raising_rank_lost(self) -> Iterator[None]:
        """Turn a RuntimeError inside torch's own collectives into RankLost if a rank is lost.

        Any other RuntimeError may come from the computation, and is raised again.
        """
        try:
            yield
        except RuntimeError as error:
            if (lost := self.heartbeat.find_lost_rank()) is None:
                raise
            raise lost from error

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """Turn a RuntimeError inside (a broken connection) into RankLost; wait to learn which rank is lost."""
        try:
            yield
        except RuntimeError as error:
            other = 0 if self.own_rank.rank else 1
            raise self.heartbeat.find_lost_rank() or RankLost(other, self.own_rank.count, error) from error


@contextlib.contextmanager
def join_process_group(processes: int, waiting: Callable[[], None]) -> Iterator[TorchCollectives]:
    """Join the process group of this run inside: the ranks of torchrun, or `processes` ranks started here.

    `waiting` is called repeatedly during each wait for the other ranks, since the supervisor needs signs of progress.
    Raises EngineError if the processes do not find each other.
    """
    if "RANK" in os.environ:
        with _group(rank_info(), _rendezvous_store(), no_known_failure, waiting) as ranks:
            yield ranks
        return
    store = STORES.TCPStore(
        "127.0.0.1", 0, processes, is_master=True, wait_for_workers=False, timeout=_time(MEET_SECONDS)
    )
    with (
        launch_ranks(processes, store.port) as others,
        _group(RankInfo(0, processes, 0, processes), store, others.first_failure, waiting) as ranks,
    ):
        yield ranks


def _rendezvous_store() -> Any:
    """Return the store whose address is in the environment."""
    try:
        return next(rendezvous("env://", timeout=_time(MEET_SECONDS)))[0]
    except (RuntimeError, ValueError) as error:
        raise _rendezvous_error(error) from error


def _rendezvous_error(error: object) -> EngineError:
    return EngineError(
        _("The processes could not connect to each other."),
        where="{}:{}".format(os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")),
        found=error,
        fix=_("Check that all processes were started, and that each can reach MASTER_ADDR and MASTER_PORT."),
    )


@contextlib.contextmanager
def _group(here: RankInfo, store: Any, dead: FindFailure, waiting: Callable[[], None]) -> Iterator[TorchCollectives]:
    """Join the group that meets in `store`; leave it after success and after an error."""
    _select_gpu_and_threads(here)
    heartbeat = Heartbeat(STORES.PrefixStore("heartbeat", store.clone()), here, dead)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    meeting = STORES.PrefixStore("group", store)
    try:
        dist.init_process_group(
            backend, store=meeting, rank=here.rank, world_size=here.count, timeout=_time(WAIT_SECONDS)
        )
    except RuntimeError as error:
        raise _rendezvous_error(error) from error
    heartbeat.start()
    problem: BaseException | None = None
    try:
        yield TorchCollectives(here, store, heartbeat, waiting)
    except BaseException as error:
        problem = error
        raise
    finally:
        heartbeat.leave(problem)
        if here.leads and problem is None:
            heartbeat.wait_for_exits(LEAVE_SECONDS)
        if not isinstance(problem, RankLost):  # NCCL would wait for the lost rank
            dist.destroy_process_group()


def _select_gpu_and_threads(here: RankInfo) -> None:
    """Select this rank's GPU and its share of the cores, since torchrun gives each process only one thread."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK) if here.local_count == here.count else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(cores // here.local_count, 1))
    if torch.cuda.is_available():
        # A lack of GPUs is reported later, with a message.
        torch.cuda.set_device(here.local_rank % torch.cuda.device_count())


def _time(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)
