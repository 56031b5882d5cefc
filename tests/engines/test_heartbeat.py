"""Heartbeats report a silent rank as lost, but not a rank that left normally. Two heartbeats share one store."""

import time

import pytest
import torch.distributed as dist

from lorafit.distributed.collectives import RankLost
from lorafit.distributed.launch import RankInfo, no_known_failure
from lorafit.engines.torch import heartbeat
from lorafit.engines.torch.heartbeat import Heartbeat


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report a silent rank after 0.4 seconds instead of 60."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(heartbeat, "PATIENCE_BEATS", 20)


def two_heartbeats(store: dist.HashStore) -> tuple[Heartbeat, Heartbeat]:
    """Return the heartbeats of ranks 0 and 1, not started yet."""
    places = RankInfo(0, 2, 0, 2), RankInfo(1, 2, 1, 2)
    first, second = (Heartbeat(store, place, no_known_failure) for place in places)
    return first, second


def wait_until_lost(heartbeat: Heartbeat) -> RankLost:
    """Wait at most 60 seconds for a lost rank, and return the error that check() raises."""
    deadline = time.monotonic() + 60
    while heartbeat.lost is None and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(RankLost) as raised:
        heartbeat.check()
    return raised.value


@pytest.mark.usefixtures("quick")
def test_a_rank_without_a_heartbeat_is_lost() -> None:
    first, _silent = two_heartbeats(dist.HashStore())
    first.start()
    lost = wait_until_lost(first)
    first.leave(None)
    assert lost.rank == 1
    assert not lost.self_reported
    assert "does not respond" in str(lost)


@pytest.mark.usefixtures("quick")
def test_a_rank_with_a_heartbeat_is_not_lost_nor_is_one_that_left_normally() -> None:
    first, second = two_heartbeats(dist.HashStore())
    first.start()
    second.start()
    time.sleep(1.0)  # a silent rank is lost after less than half of this time
    first.check()
    second.leave(None)
    time.sleep(1.0)
    first.check()
    first.wait_for_exits(10)
    first.leave(None)


@pytest.mark.usefixtures("quick")
def test_a_rank_that_leaves_with_an_error_is_lost_at_once_and_a_rank_that_passes_the_error_on_is_not_blamed() -> None:
    store = dist.HashStore()
    first, second = two_heartbeats(store)
    first.start()
    second.leave(ValueError("its disk is full"))
    lost = wait_until_lost(first)
    assert lost.self_reported
    assert "its disk is full" in str(lost)
    first.leave(lost)
    third = Heartbeat(store, RankInfo(1, 2, 1, 2), no_known_failure)
    third.start()
    assert wait_until_lost(third).rank == 1  # rank 0 left only because rank 1 was lost
    third.leave(None)


@pytest.mark.usefixtures("quick")
def test_a_death_that_the_system_reports_is_reported_with_its_reason() -> None:
    first = Heartbeat(dist.HashStore(), RankInfo(0, 2, 0, 2), lambda: (1, "it was ended by signal SIGKILL"))
    Heartbeat(first.store, RankInfo(1, 2, 1, 2), no_known_failure)
    first.start()
    assert "SIGKILL" in str(wait_until_lost(first))
    first.leave(None)
