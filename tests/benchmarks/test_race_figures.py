"""Tests of the benchmark's figures, its result lines, and the split of a step into batches. Nothing is timed here."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from peers.protocol import Task
from peers.trainers import packs, shares
from race.contestants import CONTESTANTS, chosen
from race.figures import entries, faults, flat
from race.results import append, of_run, read, rounds_done

NAMES = ["lorafit fast", "naive"]


def line(name: str, number: int, seconds: float, gflops: float = 100.0, loss: float = 2.0) -> dict[str, Any]:
    """Return the result line of the contestant `name` in round `number`."""
    facts = {"tokens": 1000, "targets": 600, "flops": 5e11, "peak_bytes": 10**9 if name == NAMES[0] else 4 * 10**9}
    first = {"load_seconds": 5.0} if number == 0 else {}
    return {"run": "r", "contestant": name, "round": number, "heat": "h", "seconds": seconds, "gflops": gflops,
            "loss": loss, **facts, **first}  # fmt: skip


@pytest.fixture
def lines() -> list[dict[str, Any]]:
    """Result lines of two contestants. In round 2 the machine has half its speed, so both take twice as long."""
    ours = [line(NAMES[0], n, s, g) for n, s, g in ((0, 9, 100), (1, 10, 100), (2, 20, 50))]
    return ours + [line(NAMES[1], n, s, g) for n, s, g in ((0, 50, 100), (1, 40, 100), (2, 80, 50))]


def test_ratios_are_taken_within_a_round_and_times_are_corrected_by_the_machines_speed(
    lines: list[dict[str, Any]],
) -> None:
    ours, naive = entries(lines)
    assert (ours.behind, naive.behind) == (1.0, 4.0)
    assert ours.tokens_per_second == pytest.approx(100.0)
    assert naive.targets_per_second == pytest.approx(15.0)
    assert ours.utilisation == pytest.approx(5e11 / 10 / 100e9)
    assert naive.first_step_seconds == 55.0


def test_the_flat_figures_are_complete_and_null_for_a_peer_that_took_no_part(lines: list[dict[str, Any]]) -> None:
    figures = flat(lines, NAMES, rounds=2)
    assert figures["ok"]
    assert (figures["vs_naive"], figures["vs_trl_tuned"], figures["peak_vs_leanest"]) == (4.0, None, 0.25)
    assert (figures["rounds"], figures["peers"]) == (2, 1)


def test_a_peer_that_failed_stopped_early_or_computed_another_loss_is_named(lines: list[dict[str, Any]]) -> None:
    failed = [*lines, {"run": "r", "contestant": "trl tuned", "failed": "killed"}]
    assert faults(failed, [*NAMES, "trl tuned"], 2) == ["trl tuned: 0 of 2 rounds; killed"]
    assert faults(lines, NAMES, 3)[1] == "naive: 2 of 3 rounds; broken off"
    other = [{**one, "loss": 2.002} if one["contestant"] == "naive" else one for one in lines]
    assert faults(other, NAMES, 2) == ["naive: loss 2.0020, not 2.0000"]
    assert not flat(other, NAMES, 2)["ok"]


def test_finished_rounds_are_counted_and_a_truncated_line_is_ignored(
    tmp_path: Path, lines: list[dict[str, Any]]
) -> None:
    path = tmp_path / "speed.jsonl"
    for one in lines:
        append(path, one)
    with path.open("a") as file:
        file.write('{"run": "r", "contest')
    assert rounds_done(of_run(read(path), "r"), "naive") == 2
    assert rounds_done(of_run(read(path), "other"), "naive") == 0


def test_every_row_of_a_step_is_in_it_once_whatever_the_order(tmp_path: Path) -> None:
    rng, lengths = np.random.default_rng(0), np.asarray([300, 40, 500, 90, 220, 310, 130, 60])
    samples = tmp_path / "samples.npz"
    np.savez(samples, ids=rng.integers(0, 99, lengths.sum()), targets=rng.random(lengths.sum()) < 0.5,
             ends=lengths.cumsum())  # fmt: skip
    steps = [[0, 1, 2, 3], [4, 5, 6, 7]]
    task = Task("", str(samples), steps, "cpu", 1, 512, 8, 16.0, 1e-4, (1, 1, 1), {"sorted": True})
    wanted = [sorted(row for row in rows) for rows in task.rows()]
    by_two, by_bin = shares(task, 2), packs(task)
    assert [sorted(by_two[0] + by_two[1]), sorted(by_two[2] + by_two[3])] == wanted
    assert [len(batch[0][0]) for batch in by_two] == [500, 90, 310, 130], "near lengths together"
    assert [sorted(pack) for pack in by_bin] == wanted


def test_the_reference_always_takes_part_and_a_wrong_name_is_refused() -> None:
    assert [c.name for c in chosen("cpu", False, ["naive"])] == NAMES
    assert {c.name for c in chosen("cpu", True, [])} == {*NAMES, "trl packing", "lf packing"}
    assert len({c.name for c in CONTESTANTS}) == len(CONTESTANTS)
    with pytest.raises(SystemExit, match="nobody"):
        chosen("cpu", False, ["nobody"])
