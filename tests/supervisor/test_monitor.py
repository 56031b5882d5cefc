"""Does the supervisor see what goes on, and give the right orders? On described machines; this one is asked only whether it answers."""

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
from lorafit.supervisor.monitor import Monitor, Sensors
from lorafit.supervisor.watchdog import BUSY_PATIENCE, Watchdog

# the pulse


def looks(pulse: Watchdog, seconds: int, cpu: float = 0.0, stopped: bool = False, start: int = 0) -> bool:
    """Whether it hangs after looks once a second; `cpu` is the share of a core that is used."""
    return any([pulse.hangs(float(now), cpu * now, stopped) for now in range(start, start + seconds + 1)])


def test_an_idle_worker_may_be_silent_for_so_long() -> None:
    assert not looks(Watchdog(300), 290)
    assert looks(Watchdog(300), 310)


def test_one_that_computes_is_waited_for_longer_though_not_for_ever() -> None:
    assert not looks(Watchdog(300), 2900, cpu=1.0)
    assert looks(Watchdog(300), 300 * BUSY_PATIENCE + 10, cpu=1.0)


def test_a_beat_begins_it_anew() -> None:
    pulse = Watchdog(300)
    for start in range(0, 2000, 200):
        assert not looks(pulse, 199, start=start)
        pulse.beat(start + 200.0)


def test_pauses_that_were_seen_before_are_no_hang() -> None:
    pulse = Watchdog(10)
    looks(pulse, 9, start=0)
    pulse.beat(9.0)
    looks(pulse, 9, start=9)
    pulse.beat(18.0)
    assert not looks(pulse, 60, start=18)
    assert looks(pulse, 120, start=18)


def test_a_stopped_worker_does_not_hang_and_neither_does_one_that_nobody_looked_at() -> None:
    assert not looks(Watchdog(300), 5000, stopped=True)
    pulse = Watchdog(300)
    assert not pulse.hangs(0.0, 0.0, False)
    assert not pulse.hangs(50_000.0, 0.0, False)  # the supervisor itself was stopped, or the machine slept


# clocks


def test_sleep_and_a_set_clock_are_told_apart() -> None:
    before = Clocks(1000.0, 500.0, 100.0)
    slept = Clocks(4610.0, 4110.0, 110.0)
    assert slept_seconds(before, slept) == 3600
    assert clock_set_seconds(before, slept) is None
    set_back = Clocks(1010.0 - 7200, 510.0, 110.0)
    assert slept_seconds(before, set_back) is None
    assert clock_set_seconds(before, set_back) == -7200
    assert slept_seconds(before, Clocks(1010.0, 510.0, 110.0)) is None


def test_this_machines_clocks_go_alike() -> None:
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


def test_heat_is_asked_without_special_rights() -> None:
    assert thermal.command("Darwin", False) == ("notifyutil", "-g", "com.apple.system.thermalpressurelevel")
    assert thermal.command("Linux", False) is None
    cmd = thermal.command("Linux", True)
    assert cmd is not None
    assert cmd[0] == "nvidia-smi"


def test_what_the_tools_print_becomes_words_only_where_it_slows_down() -> None:
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


def test_linux_tells_how_long_nobody_could_work(tmp_path: Path) -> None:
    path = write(tmp_path, memory=PSI) / "memory"
    assert memory_pressure.stalled_percent(path) == 12.5
    assert memory_pressure.stalled_percent(tmp_path / "none") is None


def test_a_cgroup_tells_its_share_of_either_version(tmp_path: Path) -> None:
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


def test_memory_is_short_when_several_looks_agree() -> None:
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


# all together


def senses(
    memory: MemoryReading | None = None,
    batteries: Iterator[tuple[float, bool] | None] | None = None,
    hot: str | None = None,
) -> Sensors:
    battery = repeat(None) if batteries is None else batteries
    return Sensors(lambda: memory or MemoryReading(), lambda: next(battery), lambda: hot, lambda: Clocks(0, 0, 0))


def orders(care: Monitor, seconds: int) -> list[tuple[int, Order]]:
    """The orders given in so many seconds, with the second."""
    return [(now, order) for now in range(100, 100 + seconds) for order in care.orders(float(now))]


def test_a_calm_machine_gets_no_orders() -> None:
    assert orders(Monitor(20.0, 300.0, senses()), 600) == []


def test_memory_that_stays_short_asks_for_less_ever_more_rarely() -> None:
    given = orders(Monitor(20.0, 300.0, senses(MemoryReading(stalled_percent=50.0))), 1000)
    assert {order.name for _now, order in given} == {"shrink"}
    times = [now for now, _order in given]
    assert times[0] <= 115
    gaps = [b - a for a, b in pairwise(times)]
    assert gaps == sorted(gaps)
    assert gaps[0] >= 120


def test_a_pause_is_told_saved_and_ended_by_power() -> None:
    power_over_time = chain([(50.0, False), (10.0, False), (9.0, False)], repeat((9.0, True)))
    care = Monitor(20.0, 300.0, senses(batteries=power_over_time))
    assert [order.name for _now, order in orders(care, 200)] == ["say", "pause", "say", "go_on"]


def test_heat_is_said() -> None:
    given = orders(Monitor(20.0, 300.0, senses(hot="The GPU is hot.")), 50)
    assert [order.text for _now, order in given] == ["The GPU is hot."]


# the worker's end


def test_orders_are_heard_and_taken_once() -> None:
    link = Link()
    assert (link.stop_code, link.take_shrink(), link.take_texts()) == (0, False, [])
    for order in (Order("shrink"), Order("say", text="a"), Order("say", text="b"), Order("pause")):
        link.take(order)
    assert link.paused
    assert link.take_shrink()
    assert not link.take_shrink()
    assert link.take_texts() == ["a", "b"]
    link.take(Order("recycle"))
    assert link.stop_code == RECYCLE
    link.take(Order("stop", signal=15))
    assert link.stop_code == 15


@pytest.mark.parametrize(("writes", "code"), [(False, 128 + HANG_UP), (True, 3)])
def test_a_worker_without_a_supervisor_ends_at_once_where_there_is_nothing_to_save(writes: bool, code: int) -> None:
    """Else it would take the run from the one that goes on with it."""
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


def test_taking_up_work_beats_and_not_too_often() -> None:
    said: list[Message] = []
    link = Link(said.append)
    assert list(link.with_beats([1, 2, 3])) == [1, 2, 3]
    assert said == [Beat()]


def test_a_beat_can_tell_how_much_lies_behind() -> None:
    said: list[Message] = []
    items = Link(said.append).with_beats("abcd", lambda share: Evaluating(time=0.0, rows=8, share=share))
    assert items[2] == "c"
    assert said == [Evaluating(time=0.0, rows=8, share=0.5)]
