"""Tests of the monitor, its sensors and its orders, on described machines; of this machine only that sensors answer."""

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain, pairwise, repeat
from pathlib import Path

import pytest

from lorafit.events import Evaluating
from lorafit.ipc.link import HANG_UP, RECYCLE, Link
from lorafit.ipc.protocol import Beat, Message, Order
from lorafit.supervisor import battery as power
from lorafit.supervisor import memory_pressure, thermal
from lorafit.supervisor.clock_drift import Clocks, clock_set_seconds, read_clocks, slept_seconds
from lorafit.supervisor.memory_pressure import MemoryReading
from lorafit.supervisor.monitor import USER, Monitor, Sensors
from lorafit.supervisor.watchdog import BUSY_PATIENCE, Watchdog

# watchdog


def hangs_within(watchdog: Watchdog, seconds: int, cpu: float = 0.0, stopped: bool = False, start: int = 0) -> bool:
    """Ask once a second and return whether the worker ever hangs; `cpu` is the share of a core that it uses."""
    return any([watchdog.hangs(float(now), cpu * now, stopped) for now in range(start, start + seconds + 1)])


def test_an_idle_worker_may_be_silent_up_to_hang_seconds() -> None:
    assert not hangs_within(Watchdog(300), 290)
    assert hangs_within(Watchdog(300), 310)


def test_a_busy_worker_may_be_silent_for_longer_but_not_forever() -> None:
    assert not hangs_within(Watchdog(300), 2900, cpu=1.0)
    assert hangs_within(Watchdog(300), 300 * BUSY_PATIENCE + 10, cpu=1.0)


def test_a_beat_resets_the_watchdog() -> None:
    watchdog = Watchdog(300)
    for start in range(0, 2000, 200):
        assert not hangs_within(watchdog, 199, start=start)
        watchdog.beat(start + 200.0)


def test_pauses_as_long_as_earlier_ones_are_no_hang() -> None:
    watchdog = Watchdog(10)
    hangs_within(watchdog, 9, start=0)
    watchdog.beat(9.0)
    hangs_within(watchdog, 9, start=9)
    watchdog.beat(18.0)
    assert not hangs_within(watchdog, 60, start=18)
    assert hangs_within(watchdog, 120, start=18)


def test_a_stopped_worker_does_not_hang_and_neither_does_one_that_was_not_checked() -> None:
    assert not hangs_within(Watchdog(300), 5000, stopped=True)
    watchdog = Watchdog(300)
    assert not watchdog.hangs(0.0, 0.0, False)
    assert not watchdog.hangs(50_000.0, 0.0, False)  # the supervisor itself was stopped, or the machine slept
    watchdog = Watchdog(3)
    for now in range(0, 6000, 300):  # Ctrl-Z again and again: no gap of the supervisor counts
        assert not watchdog.hangs(float(now), 0.0, False)


# clocks


def test_sleep_and_a_set_clock_are_distinguished() -> None:
    before = Clocks(1000.0, 500.0, 100.0)
    slept = Clocks(4610.0, 4110.0, 110.0)
    assert slept_seconds(before, slept) == 3600
    assert clock_set_seconds(before, slept) is None
    set_back = Clocks(1010.0 - 7200, 510.0, 110.0)
    assert slept_seconds(before, set_back) is None
    assert clock_set_seconds(before, set_back) == -7200
    assert slept_seconds(before, Clocks(1010.0, 510.0, 110.0)) is None


def test_the_clocks_of_this_machine_agree() -> None:
    before = read_clocks()
    assert slept_seconds(before, read_clocks()) is None


# power and heat


@pytest.mark.parametrize(
    ("found", "paused", "order"),
    [
        (None, False, None),
        ((80.0, False), False, None),
        ((19.0, False), False, "pause"),
        ((19.0, True), False, None),
        ((15.0, False), True, None),
        ((15.0, True), True, "go_on"),
        (None, True, "go_on"),
    ],
)
def test_a_low_battery_pauses_until_there_is_power(
    found: tuple[float, bool] | None, paused: bool, order: str | None
) -> None:
    assert power.battery_order(found, 20.0, paused) == order


def test_level_zero_never_pauses() -> None:
    assert power.battery_order((0.5, False), 0.0, False) is None


def test_heat_is_read_without_special_rights() -> None:
    assert thermal.command("Darwin", False) == ("notifyutil", "-g", "com.apple.system.thermalpressurelevel")
    assert thermal.command("Linux", False) is None
    cmd = thermal.command("Linux", True)
    assert cmd is not None
    assert cmd[0] == "nvidia-smi"


def test_the_output_of_the_tools_becomes_a_text_only_if_it_reports_throttling() -> None:
    assert thermal.throttling_text(thermal.APPLE, "com.apple.system.thermalpressurelevel 0\n") is None
    assert thermal.throttling_text(thermal.APPLE, "com.apple.system.thermalpressurelevel 2\n")
    assert thermal.throttling_text(thermal.NVIDIA, "71, Not Active, Not Active\n") is None
    assert "88" in (
        thermal.throttling_text(thermal.NVIDIA, "60, Not Active, Not Active\n88, Active, Not Active\n") or ""
    )
    assert thermal.throttling_text(thermal.NVIDIA, "[N/A], [N/A], [N/A]\n") is None
    assert thermal.throttling_text(thermal.APPLE, "") is None


# memory


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


PSI = "some avg10=31.20 avg60=5.00 avg300=1.00 total=9\nfull avg10=12.50 avg60=3.00 avg300=0.50 total=5\n"


def test_linux_reports_the_share_of_time_stalled_for_memory(tmp_path: Path) -> None:
    path = write(tmp_path, memory=PSI) / "memory"
    assert memory_pressure.stalled_percent(path) == 12.5
    assert memory_pressure.stalled_percent(tmp_path / "none") is None


def test_the_used_share_of_a_cgroup_is_read_in_both_versions(tmp_path: Path) -> None:
    stat = "anon 1\ninactive_file 100\n"
    two = write(tmp_path / "2", memory__current="1100\n", memory__max="1000\n", memory__stat=stat)
    assert memory_pressure.share(two) == 1.0
    one = write(tmp_path / "1", **{"memory.usage_in_bytes": "600", "memory.limit_in_bytes": "1000", "memory.stat": "total_inactive_file 100\n"})  # fmt: skip
    assert memory_pressure.share(one) == 0.5
    free = write(tmp_path / "3", memory__current="1100\n", memory__max="max\n")
    assert memory_pressure.share(free) is None
    endless = write(tmp_path / "4", **{"memory.usage_in_bytes": "600", "memory.limit_in_bytes": "9223372036854771712"})
    assert memory_pressure.share(endless) is None


@pytest.mark.parametrize(
    ("lines", "place", "file"),
    [
        ("0::/user.slice/a\n", "user.slice/a", "memory.events"),
        ("0::/outside/name\n", "", "memory.events"),
        ("4:cpu:/\n3:memory:/docker/x\n0::/\n", "memory/docker/x", "memory.limit_in_bytes"),
    ],
)
def test_the_memory_cgroup_is_found(tmp_path: Path, lines: str, place: str, file: str) -> None:
    memory_pressure.cgroup.cache_clear()
    write(tmp_path / "proc" / "self", cgroup=lines)
    folder = write(tmp_path / "fs" / place, **{file: "0"})
    assert memory_pressure.cgroup(tmp_path / "proc", tmp_path / "fs") == folder
    memory_pressure.cgroup.cache_clear()


def test_memory_is_short_when_several_readings_agree() -> None:
    high, low = MemoryReading(stalled_percent=40.0), MemoryReading(stalled_percent=2.0)
    assert memory_pressure.is_short([high, high, high])
    assert not memory_pressure.is_short([high, low, high])
    assert not memory_pressure.is_short([high, high])
    assert memory_pressure.is_short([MemoryReading(cgroup_share=0.99)] * 3)
    assert memory_pressure.is_short([MemoryReading(macos_level=4)] * 3)
    assert not memory_pressure.is_short([MemoryReading(macos_level=2)] * 3)
    assert not memory_pressure.is_short([MemoryReading()] * 3)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine_answers() -> None:
    assert memory_pressure.read_memory_pressure().macos_level is None
    assert memory_pressure.oom_kills() >= 0


# the whole monitor


def sensors(
    memory: MemoryReading | None = None,
    batteries: Iterator[tuple[float, bool] | None] | None = None,
    hot: str | None = None,
) -> Sensors:
    battery = repeat(None) if batteries is None else batteries
    return Sensors(lambda: memory or MemoryReading(), lambda: next(battery), lambda: hot, lambda: Clocks(0, 0, 0))


def orders(monitor: Monitor, seconds: int) -> list[tuple[int, Order]]:
    """Return the orders of `seconds` seconds, each with its second."""
    return [(now, order) for now in range(100, 100 + seconds) for order in monitor.orders(float(now))]


def test_a_calm_machine_gets_no_orders() -> None:
    assert orders(Monitor(20.0, 300.0, sensors()), 600) == []


def test_memory_that_stays_short_gives_shrink_orders_ever_more_rarely() -> None:
    given = orders(Monitor(20.0, 300.0, sensors(MemoryReading(stalled_percent=50.0))), 1000)
    assert {order.name for _now, order in given} == {"shrink"}
    times = [now for now, _order in given]
    assert times[0] <= 115
    gaps = [b - a for a, b in pairwise(times)]
    assert gaps == sorted(gaps)
    assert gaps[0] >= 120


def test_a_low_battery_pauses_with_a_text_and_power_ends_the_pause() -> None:
    power_over_time = chain([(50.0, False), (10.0, False), (9.0, False)], repeat((9.0, True)))
    monitor = Monitor(20.0, 300.0, sensors(batteries=power_over_time))
    assert [(order.name, order.text) for _now, order in orders(monitor, 200)] == [
        ("pause", "On battery at 10%: training is saved and paused until there is power (--pause_battery)."),
        ("go_on", "Power is back: training continues."),
    ]


def test_a_user_who_has_paused_keeps_the_pause_when_power_is_back() -> None:
    power_over_time = chain([(10.0, False)], repeat((9.0, True)))
    monitor = Monitor(20.0, 300.0, sensors(batteries=power_over_time))
    assert monitor.pause(USER, "by me") == Order("pause", text="by me")
    given = [(order.name, order.text) for _now, order in orders(monitor, 100)]
    assert [name for name, _text in given] == ["pause", "say"], "the worker goes on waiting"
    assert given[1][1] == "Power is back; the training stays paused by the user."
    assert monitor.paused
    assert monitor.paused_by_user
    assert monitor.go_on(USER, "on") == Order("go_on", text="on")
    assert not monitor.paused


@pytest.mark.parametrize("user_paused_too", [False, True])
def test_the_users_order_to_continue_overrides_the_battery(user_paused_too: bool) -> None:
    monitor = Monitor(20.0, 300.0, sensors(batteries=repeat((9.0, False))))
    if user_paused_too:
        monitor.pause(USER, "by me")
    assert [order.name for _now, order in orders(monitor, 100)] == ["pause"]
    assert monitor.go_on(USER, "on") == Order("go_on", text="on")
    assert not monitor.paused
    assert orders(monitor, 600) == [], "the battery does not pause again"
    monitor.pause(USER, "by me")
    assert monitor.paused_by_user


def test_a_paused_worker_does_not_hang() -> None:
    monitor = Monitor(20.0, 10.0, sensors())
    monitor.pause(USER, "by me")
    assert not any([monitor.hangs(os.getpid(), float(now)) for now in range(0, 1000, 5)])


def test_heat_is_reported() -> None:
    given = orders(Monitor(20.0, 300.0, sensors(hot="The GPU is hot.")), 50)
    assert [order.text for _now, order in given] == ["The GPU is hot."]


# the worker's side of the link


def test_orders_are_received_and_taken_once() -> None:
    link = Link()
    assert (link.stop_code, link.take_shrink(), link.take_orders()) == (0, False, [])
    for order in (Order("shrink"), Order("say", text="a"), Order("say", text="b"), Order("pause")):
        link.take(order)
    assert link.paused
    assert link.take_shrink()
    assert not link.take_shrink()
    assert [(order.name, order.text) for order in link.take_orders()] == [("say", "a"), ("say", "b"), ("pause", "")]
    link.take(Order("recycle"))
    assert link.stop_code == RECYCLE
    link.take(Order("stop", signal=15))
    assert link.stop_code == 15


@pytest.mark.parametrize(("writes", "code"), [(False, 128 + HANG_UP), (True, 3)])
def test_a_worker_without_a_supervisor_ends_at_once_where_there_is_nothing_to_save(writes: bool, code: int) -> None:
    """A worker that stayed alive would hold the lock of a run that a new supervisor resumes."""
    lines = [
        "import sys, time",
        "from lorafit.ipc.link import Link, receive_orders",
        f"link = Link(); link.holds_run = {writes}",
        "receive_orders(link, sys.stdin)",
        "while not link.stop_code: time.sleep(0.01)",
        "time.sleep(0.3)",
        "sys.exit(3)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == code


def test_each_taken_item_may_beat_but_not_too_often() -> None:
    sent: list[Message] = []
    link = Link(sent.append)
    assert list(link.with_beats([1, 2, 3])) == [1, 2, 3]
    assert sent == [Beat()]


def test_a_beat_can_report_the_share_that_is_done() -> None:
    sent: list[Message] = []
    items = Link(sent.append).with_beats("abcd", lambda share: Evaluating(time=0.0, rows=8, share=share))
    assert items[2] == "c"
    assert sent == [Evaluating(time=0.0, rows=8, share=0.5)]
