"""Is a process that others wait for missed when it is silent, and not when it left in peace? Two pulses over one store."""

import time

import pytest
import torch.distributed as dist

from lorafit.distributed.collectives import RankLost
from lorafit.distributed.launch import RankInfo, no_known_failure
from lorafit.engines.torch import heartbeat
from lorafit.engines.torch.heartbeat import Heartbeat


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(heartbeat, "PATIENCE_BEATS", 20)


def pair_of(store: dist.HashStore) -> tuple[Heartbeat, Heartbeat]:
    return Heartbeat(store, RankInfo(0, 2, 0, 2), no_known_failure), Heartbeat(
        store, RankInfo(1, 2, 1, 2), no_known_failure
    )


def wait_until_lost(one: Heartbeat) -> RankLost:
    deadline = time.monotonic() + 60
    while one.lost is None and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(RankLost) as raised:
        one.check()
    return raised.value


@pytest.mark.usefixtures("quick")
def test_who_gives_no_sign_of_life_is_lost() -> None:
    first, _silent = pair_of(dist.HashStore())
    first.start()
    lost = wait_until_lost(first)
    first.leave(None)
    assert lost.rank == 1
    assert not lost.self_reported
    assert "no sign of life" in str(lost)


@pytest.mark.usefixtures("quick")
def test_who_beats_is_not_lost_and_who_left_in_peace_is_not_missed() -> None:
    first, second = pair_of(dist.HashStore())
    first.start()
    second.start()
    time.sleep(1.0)  # more than twice what a silent one is given
    first.check()
    second.leave(None)
    time.sleep(1.0)
    first.check()
    first.wait_for_exits(10)
    first.leave(None)


@pytest.mark.usefixtures("quick")
def test_who_leaves_with_a_reason_is_heard_at_once_and_who_only_passes_it_on_is_not_blamed() -> None:
    store = dist.HashStore()
    first, second = pair_of(store)
    first.start()
    second.leave(ValueError("its disk is full"))
    lost = wait_until_lost(first)
    assert lost.self_reported
    assert "its disk is full" in str(lost)
    first.leave(lost)
    third = Heartbeat(store, RankInfo(1, 2, 1, 2), no_known_failure)
    third.start()
    assert wait_until_lost(third).rank == 1  # not 0, which left because of 1
    third.leave(None)


@pytest.mark.usefixtures("quick")
def test_a_death_that_the_system_tells_is_told_with_its_words() -> None:
    first = Heartbeat(dist.HashStore(), RankInfo(0, 2, 0, 2), lambda: (1, "it was ended by signal SIGKILL"))
    Heartbeat(first.store, RankInfo(1, 2, 1, 2), no_known_failure)
    first.start()
    assert "SIGKILL" in str(wait_until_lost(first))
    first.leave(None)
