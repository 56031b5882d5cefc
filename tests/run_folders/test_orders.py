"""A user's order is a file in the run's folder: written whole, for one process, read once, and acknowledged by an event."""

import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.fake_runs import make_run, started
from support.plans import make_plan

from lorafit import api
from lorafit.config import TrainConfig, write_yaml
from lorafit.errors import DiskError, RunError
from lorafit.events import Continued, Event, EventLog, Finished, Paused, Stopped
from lorafit.ipc.link import Link, follow_order_file
from lorafit.run_folders.directory import RunDir, info_of
from lorafit.run_folders.orders import CONTINUE, PAUSE, STOP, acknowledgement, take_order, write_order


@pytest.fixture
def live(tmp_path: Path) -> Iterator[RunDir]:
    """A run that this process is writing, in a folder whose name needs quotes."""
    run = RunDir(tmp_path / "my run")
    run.path.mkdir()
    write_yaml(TrainConfig(), run.config)
    log_events(run, started(run, make_plan()))
    with run.lock():
        yield run


def log_events(run: RunDir, *events: Event) -> None:
    with EventLog(run.events) as log:
        for event in events:
            log.write(event)


@pytest.mark.parametrize("order", [STOP, PAUSE, CONTINUE])
def test_an_order_is_taken_once_and_leaves_no_file(live: RunDir, order: str) -> None:
    write_order(live, order)
    assert take_order(live, os.getpid()) == order
    assert take_order(live, os.getpid()) is None
    assert sorted(path.name for path in live.path.iterdir()) == ["config.yaml", "events.jsonl", "lock"]


def test_a_newer_order_replaces_one_that_is_not_yet_read(live: RunDir) -> None:
    write_order(live, PAUSE)
    write_order(live, STOP)
    assert take_order(live, os.getpid()) == STOP
    assert take_order(live, os.getpid()) is None


def test_an_order_appears_whole_or_not_at_all(live: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    write_order(live, PAUSE)
    before = live.order.read_bytes()
    seen = []

    def replace_and_look(source: os.PathLike[str], target: os.PathLike[str]) -> None:
        seen.append((live.order.read_bytes(), json.loads(Path(source).read_text())))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", replace_and_look)
    with pytest.raises(DiskError, match=r"The disk is full\."):
        write_order(live, STOP)
    assert seen == [(before, {"order": STOP, "process": os.getpid()})], "the old order stays until the new one is whole"
    assert take_order(live, os.getpid()) == PAUSE


def test_an_order_to_another_process_is_removed_and_not_obeyed(live: RunDir) -> None:
    write_order(live, STOP)
    assert take_order(live, os.getpid() + 1) is None
    assert not live.order.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"7", b"\xff", b'{"order": "stop"}', b'{"order": "dance", "process": 7}',
     b'{"order": ["stop"], "process": 7}', b'{"order": "stop", "process": null}'],
)  # fmt: skip
def test_a_file_that_is_no_order_is_removed_and_not_obeyed(live: RunDir, content: bytes) -> None:
    live.order.write_bytes(content)
    assert take_order(live, 7) is None
    assert sorted(path.name for path in live.path.iterdir()) == ["config.yaml", "events.jsonl", "lock"]


@pytest.mark.parametrize("order", [STOP, PAUSE, CONTINUE])
@pytest.mark.parametrize(
    ("stop_after", "advice"), [(5, "Resume the run: lorafit resume "), (None, "Try the result: lorafit chat ")]
)
def test_a_run_that_is_not_running_is_refused_with_the_command_that_follows(
    tmp_path: Path, order: str, stop_after: int | None, advice: str
) -> None:
    run = make_run(tmp_path / "my runs", stop_after=stop_after)
    with pytest.raises(RunError) as refused:
        api.order_run(str(run.path), order)
    assert refused.value.what == "This run is not running."
    assert str(refused.value.fix).endswith(advice + shlex.quote(str(run.path)))
    assert "'" in str(refused.value.fix), "the folder's name has a space"
    assert not run.order.exists()


def test_an_event_after_the_order_acknowledges_it(live: RunDir) -> None:
    log_events(live, Paused(step=3, text="a", time=10.0))
    for order in (STOP, PAUSE, CONTINUE):
        assert acknowledgement(live, order, 11.0) is None
    paused, continued = Paused(step=4, text="a", time=11.0), Continued(step=4, text="b", time=12.0)
    stopped = Stopped(step=5, signal=15, time=13.0)
    log_events(live, paused, continued, stopped)
    found = [acknowledgement(live, order, 11.0) for order in (PAUSE, CONTINUE, STOP)]
    assert found == [paused, continued, stopped]


def test_a_run_that_finishes_first_acknowledges_stop_and_pause(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for order in (STOP, PAUSE):
        assert isinstance(acknowledgement(run, order, 0.0), Finished)
    assert acknowledgement(run, CONTINUE, 0.0) is None


def test_an_order_that_nobody_reads_is_reported_after_the_wait(live: RunDir) -> None:
    assert api.order_run(str(live.path), PAUSE, wait_seconds=0.1) is None
    assert json.loads(live.order.read_text()) == {"order": PAUSE, "process": os.getpid()}


def test_a_run_that_was_paused_is_running_once_it_is_resumed(live: RunDir) -> None:
    assert info_of(live).state == "running"
    log_events(live, Paused(step=3, text="a"))
    assert info_of(live).state == "paused"
    log_events(live, Continued(step=3, text="b"))
    assert info_of(live).state == "running"
    log_events(live, Paused(step=4, text="a"), Stopped(step=4, signal=15), started(live, make_plan()))
    assert info_of(live).state == "running"


def test_without_a_supervisor_the_process_reads_the_orders_itself(
    live: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorafit.ipc.link.POLL_SECONDS", 0.01)
    link = Link()

    def give(order: str) -> None:
        write_order(live, order)
        wait_until(lambda: not live.order.exists() and (order == STOP or link.paused == (order == PAUSE)))

    with follow_order_file(link, live):
        give(PAUSE)
        give(CONTINUE)
        assert link.stop_signal is None
        give(STOP)
        wait_until(lambda: link.stop_signal == 15)
    command = f"lorafit runs continue {shlex.quote(str(live.path))}"
    assert [(order.name, order.text) for order in link.take_orders()] == [
        ("pause", f"Paused by the user. Continue: {command}"),
        ("go_on", "Continued by the user."),
    ]
    write_order(live, PAUSE)
    time.sleep(0.1)
    assert live.order.exists(), "after the block nobody reads"


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
