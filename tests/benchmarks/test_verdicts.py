"""Tests of the verdicts of the benchmarks of MLX, of quantized base models and of parity. Nothing is measured here."""

import sys
from typing import Any

import pytest
from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import mlx_speed
import parity
import quantised

FIGURES = {"base_bytes": 500, "peak_bytes": 1000, "before": 2.5, "after": 2.0, "step_seconds": 1.0,
           "loss_rel": 1e-7, "grad_rel": 1e-5}  # fmt: skip
SMALL = {**FIGURES, "base_bytes": 150, "peak_bytes": 700, "after": 2.05}


@pytest.fixture
def bases() -> quantised.Found:
    """Good figures of every base model."""
    return {key: dict(FIGURES if key.endswith("fp32") else SMALL) for key in quantised.BASES}


def test_quantised_bases_are_good_where_they_are_smaller_right_and_learn_as_well(bases: quantised.Found) -> None:
    flat = quantised.verdict(bases, 40)
    assert flat["ok"]
    assert (flat["torch_4bit_peak_bytes"], flat["mlx_fp32_after"]) == (700, 2.0)
    assert not any(isinstance(value, dict) for value in flat.values())


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [("mlx_4bit", "grad_rel", 1e-2), ("torch_4bit", "peak_bytes", 1001), ("mlx_8bit", "after", 2.2),
     ("torch_fp32", "after", 2.6), ("torch_8bit", "grad_rel", float("nan"))],
)  # fmt: skip
def test_a_bad_base_makes_the_whole_bad(bases: quantised.Found, key: str, name: str, value: float) -> None:
    bases[key][name] = value
    assert not quantised.verdict(bases, 40)["ok"]


def test_the_table_of_bases_has_a_line_for_each(bases: quantised.Found) -> None:
    lines = quantised.table(bases, 40, "a chip").splitlines()
    assert len([line for line in lines if line.startswith("|")]) == len(quantised.BASES) + 2
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


SECONDS = {mlx_speed.OURS: 1.0, mlx_speed.LEAN: 1.4, mlx_speed.LORA: 1.9, mlx_speed.EAGER: 1.6, mlx_speed.LOOP: 1.4}
PEAKS = {mlx_speed.OURS: 50, mlx_speed.LEAN: 20, mlx_speed.LORA: 100, mlx_speed.EAGER: 110, mlx_speed.LOOP: 100}


def race_lines(**peaks: int) -> list[dict[str, Any]]:
    """Return the result lines of three rounds. `peaks`: peak bytes of a contestant, other than in PEAKS."""
    facts = {"run": "r", "heat": "h", "tokens": 100, "targets": 60, "flops": 1e9, "gflops": 100.0, "loss": 2.0,
             "load_seconds": 1.0}  # fmt: skip
    return [
        {**facts, "contestant": name, "round": number, "seconds": seconds, "resident_bytes": 2 * PEAKS[name],
         "peak_bytes": peaks.get(name, PEAKS[name])}
        for number in range(3) for name, seconds in SECONDS.items()
    ]  # fmt: skip


def test_mlx_lms_trainer_counts_as_it_is_fastest_and_leanest() -> None:
    found = mlx_speed.verdict(race_lines(), 2)
    assert found["ok"], found
    assert found["vs_lora"] == pytest.approx(1.6)
    assert found["lean_vs_lora"] == pytest.approx(1.6 / 1.4)
    assert (found["peak_vs_lora"], found["lean_peak_vs_lora"]) == (0.5, 0.2)


def test_a_lean_mode_that_is_not_lean_or_a_missing_peer_is_not_good() -> None:
    assert not mlx_speed.verdict(race_lines(**{mlx_speed.LEAN: 30}), 2)["ok"]
    without = [line for line in race_lines() if line["contestant"] != mlx_speed.EAGER]
    found = mlx_speed.verdict(without, 2)
    assert not found["ok"]
    assert mlx_speed.EAGER in found["why"]


def a_run(engine: str, **changes: float) -> parity.Run:
    """Return a run with good figures, apart from `changes`."""
    facts: dict[str, Any] = {"machine": "m", "engine": engine, "device": "cpu", "steps": 2, "losses": [2.0, 1.9],
                             "held_out": 2.0, "max_rel_loss": 0.0, "b_norm_rel": 0.0, "measured": "2026-01-01"}  # fmt: skip
    return parity.Run(**{**facts, **changes})


@pytest.mark.parametrize(
    ("changes", "good"),
    [({}, True), ({"held_out": 2.003}, False), ({"max_rel_loss": 0.01}, False), ({"b_norm_rel": 0.1}, False)],
)
def test_parity_is_within_all_bounds_or_not_at_all(changes: dict[str, float], good: bool) -> None:
    assert parity.verdict([a_run("torch"), a_run("mlx", **changes)])["ok"] is good


def test_the_run_that_moved_between_engines_is_reported_separately() -> None:
    found = parity.verdict(
        [a_run("torch"), a_run("mlx", held_out=2.0002), a_run("torch → mlx → torch", held_out=2.0001)]
    )
    assert found["ok"]
    assert found["moved_rel"] == pytest.approx(5e-5)
    assert parity.verdict([a_run("torch"), a_run("mlx")])["moved_rel"] is None


def test_one_engine_alone_shows_nothing() -> None:
    assert not parity.verdict([a_run("torch")])["ok"]
