"""The warm-up probe changes no result of a run and corrects the plan as a second run would."""

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from support import tiny
from support.machines import CPU
from support.shapes import llama_1b
from support.tiny import make_samples

from lorafit.config import TrainConfig
from lorafit.data.micro_batch import MicroBatch, Sample, pack
from lorafit.engines.base import Probe, Setup
from lorafit.engines.fake import FakeEngine
from lorafit.events import Event, Finished, Rehearsed, Shrunk, StepDone, Warned
from lorafit.planner import calibrate
from lorafit.planner.calibrate import Calibration
from lorafit.planner.data_stats import Split, training_shapes
from lorafit.planner.plan import Plan
from lorafit.planner.planner import DataStats, make_plan_result
from lorafit.training.warmup_probe import Prediction, compare_with_plan, computed_shapes, run_probe
from lorafit.training.worker import train_in_process
from lorafit.units import GIB

Result = TypeVar("Result")
SAMPLES = make_samples(64, longest=300)


class TimedEngine(FakeEngine):
    """A fake engine that reports `seconds` and `peak` bytes for each micro-batch and records the calls."""

    def __init__(self, seconds: float, peak: int | None, memory_tokens: int | None = None) -> None:
        super().__init__(Setup(Path(), "", "cpu", "fp32"), memory_tokens)
        self.seconds, self.peak, self.recompute, self.probed = seconds, peak, 0, 0

    def probe(self, micro_batch: MicroBatch) -> Probe:
        super().probe(micro_batch)
        self.probed += 1
        return Probe(self.seconds, self.peak)

    def set_recompute(self, layers: int) -> None:
        self.recompute = layers


@pytest.fixture(autouse=True)
def fresh_calibrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own calibration file."""
    monkeypatch.setenv("LORAFIT_CALIBRATIONS", str(tmp_path / "calibrations.json"))


def make_prediction(gib: float, samples: Sequence[Sample] = SAMPLES, **settings: object) -> Prediction:
    """Plan a run of a 1B model on a CPU with `gib` GiB of memory."""
    lengths = np.asarray([len(sample) for sample in samples])
    config = TrainConfig(precision="fp32", quantization="none", **settings)  # type: ignore[arg-type]
    machine = replace(CPU, available_bytes=int(gib * GIB))
    share = sum(int(sample.target_mask.sum()) for sample in samples) / int(lengths.sum())
    planned = make_plan_result(config, machine, llama_1b(), DataStats(lengths, lengths[:4], "", share))
    return Prediction(planned, Calibration(), planned.plan)


@pytest.mark.parametrize("together", [True, False])
def test_a_probe_counts_the_shapes_that_the_plan_of_its_step_counts(together: bool) -> None:
    lengths, prefix = np.array([20, 30, 45]), 10
    rng = np.random.default_rng(0)
    samples = [
        Sample(np.r_[np.arange(prefix), rng.integers(50, 99, n - prefix)].astype(np.int32), np.arange(n) >= n // 2)
        for n in lengths
    ]
    micro = pack(samples, range(3), range(3), [prefix] * 3)
    data = DataStats(lengths, lengths[:0], "", micro.num_targets / micro.num_tokens, "", prefix, prefix)
    (planned,) = training_shapes(data if together else data.without_shared_prefixes, Split(3, 4096, 4096), seed=0)
    order = sorted(computed_shapes(micro, together), key=lambda share: share.tokens)
    assert order == sorted(planned, key=lambda share: share.tokens)


def exhaust(events: Generator[Event, None, Result]) -> tuple[list[Event], Result]:
    """Return all events and the generator's result."""
    found = []
    while True:
        try:
            found.append(next(events))
        except StopIteration as done:
            return found, done.value


def test_a_run_learns_the_same_with_and_without_the_probe(tmp_path: Path, demo_folder: Path) -> None:
    model = tiny.save_chat_model(tmp_path / "model", demo_folder)

    def adapter(name: str, no_preflight: bool) -> bytes:
        config = TrainConfig(
            model_name=str(model), dataset_name="demo", max_samples=30, max_length=96, max_steps=4, effective_batch=4,
            lora_r=4, lora_dropout=0.1, output_dir=str(tmp_path / name), no_preflight=no_preflight,
        )  # fmt: skip
        events = list(train_in_process(config))
        assert any(isinstance(event, Rehearsed) for event in events) != no_preflight
        (run,) = (tmp_path / name).iterdir()
        return (run / "final_model" / "adapter_model.safetensors").read_bytes()

    assert adapter("with", False) == adapter("without", True)


def test_more_micro_batches_are_probed_if_they_are_fast_and_one_in_a_short_run() -> None:
    for steps, seconds, passes in ((400, 20.0, 3), (400, 1.0, 17), (30, 0.01, 4), (9999, 0.01, 33), (4, 1.0, 1)):
        engine = TimedEngine(seconds, None)
        exhaust(run_probe(engine, SAMPLES, make_prediction(24, max_steps=steps)))
        assert engine.probed == passes


class OverheadEngine(TimedEngine):
    """A fake engine whose passes have a fixed cost besides the cost of their tokens."""

    def probe(self, micro_batch: MicroBatch) -> Probe:
        super().probe(micro_batch)
        return Probe(seconds_of(micro_batch.num_tokens), None)


def seconds_of(tokens: int) -> float:
    return 0.001 * (tokens + 100)


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_the_predicted_time_is_that_of_all_steps(batch: int) -> None:
    engine, samples = OverheadEngine(1.0, None), make_samples(400, longest=300)
    expected = make_prediction(24, samples, max_steps=400 // batch, effective_batch=batch, batch_size=1)
    _events, plan = exhaust(run_probe(engine, samples, expected))
    predicted = plan.predicted_step_seconds * plan.steps
    assert predicted == pytest.approx(sum(seconds_of(len(sample)) for sample in samples), rel=0.03)


def test_the_predicted_time_follows_the_measured_one() -> None:
    slow, quick = (
        next(
            e
            for e in exhaust(run_probe(TimedEngine(s, None), SAMPLES, make_prediction(24)))[0]
            if isinstance(e, Rehearsed)
        )
        for s in (20.0, 10.0)
    )
    assert slow.expected_seconds == pytest.approx(2 * quick.expected_seconds, rel=0.1)
    assert quick.low_seconds < quick.expected_seconds < quick.high_seconds


def test_out_of_memory_in_the_probe_lowers_the_budget_and_warns() -> None:
    expected = make_prediction(24, token_budget=2048)
    events, plan = exhaust(run_probe(TimedEngine(1.0, None, memory_tokens=600), SAMPLES, expected))
    assert plan.token_budget <= 600
    assert any(isinstance(event, Warned) for event in events)


@pytest.mark.parametrize("when", ["in the probe", "in a step"])
def test_the_next_run_does_not_start_with_a_budget_that_ran_out_of_memory(when: str) -> None:
    expected = make_prediction(24)
    if when == "in a step":
        shrunk = [
            Shrunk(text="", token_budget=700, recompute=None),
            Shrunk(text="", token_budget=8, recompute=None, ran_out=False),
        ]
        list(compare_with_plan(iter(shrunk), expected, whole=True))
    else:
        exhaust(run_probe(TimedEngine(1.0, None, memory_tokens=900), SAMPLES, expected))
    request = expected.planned.plan_request

    def next_plan(gib: float) -> Plan:
        machine = replace(request.machine, available_bytes=int(gib * GIB))
        known = calibrate.load_calibration(machine)
        return make_plan_result(request.config, machine, request.spec, request.data, known).plan

    def budget_reason(plan: Plan) -> str:
        return next(choice.reason for choice in plan.choices if choice.setting == "token_budget")

    assert expected.plan.token_budget > 512
    assert next_plan(24).token_budget == 512
    assert "ran out of memory" in budget_reason(next_plan(24))
    assert next_plan(30).token_budget == expected.plan.token_budget  # more memory is available now
    assert "ran out of memory" not in budget_reason(next_plan(30))


def test_a_peak_above_the_plan_leads_to_the_plan_that_a_second_run_makes() -> None:
    expected = make_prediction(8)
    engine = TimedEngine(1.0, int(expected.plan.predicted_peak_bytes * 1.13))
    _events, plan = exhaust(run_probe(engine, SAMPLES, expected))
    request = expected.planned.plan_request
    known = calibrate.load_calibration(request.machine)
    second = make_plan_result(request.config, request.machine, request.spec, request.data, known).plan
    assert (plan.token_budget, plan.recompute) == (second.token_budget, second.recompute)
    assert plan.recompute > expected.plan.recompute or plan.token_budget < expected.plan.token_budget
    assert engine.recompute == plan.recompute


def test_a_peak_below_the_plan_changes_nothing() -> None:
    expected = make_prediction(8)
    _events, plan = exhaust(run_probe(TimedEngine(1.0, GIB), SAMPLES, expected))
    assert (plan.token_budget, plan.recompute) == (expected.plan.token_budget, expected.plan.recompute)


def step(number: int, seconds: float) -> StepDone:
    return StepDone(step=number, loss=1.0, target_tokens=1, tokens=1, grad_norm=1.0, lr=1.0, seconds=seconds,
                    peak_bytes=3 * GIB, micro_batches=1, epoch=0.0)  # fmt: skip


def finished() -> Finished:
    return Finished(step=30, seconds=1.0, valid_loss_before=None, valid_loss_after=None, best_step=None, best_loss=None,
                    path="final_model")  # fmt: skip


def compare_whole_run(seconds: float) -> tuple[Prediction, list[Event]]:
    """Compare a run of thirty steps of `seconds` each with its plan of one second a step."""
    expected = make_prediction(24)
    expected = replace(expected, plan=replace(expected.plan, predicted_step_seconds=1.0, steps=30))
    events = [*(step(n, seconds) for n in range(1, 31)), finished()]
    return expected, list(compare_with_plan(iter(events), expected, whole=True))


def test_the_end_reports_planned_and_measured_values_and_saves_their_ratio() -> None:
    expected, (*_rest, last) = compare_whole_run(1.2)
    assert isinstance(last, Finished)
    assert (last.predicted_seconds, last.peak_bytes) == (30.0, 3 * GIB)
    assert last.predicted_peak_bytes == expected.plan.predicted_peak_bytes
    kept = calibrate.load_calibration(expected.planned.plan_request.machine).measured[expected.key]
    assert kept.slowness == pytest.approx(1.2 / expected.uncalibrated().step, rel=1e-3)


def test_a_run_much_slower_than_its_probe_warns_and_saves_no_time_ratio() -> None:
    expected, events = compare_whole_run(2.0)
    assert [e.step for e in events if isinstance(e, Warned)] == [20]
    machine = expected.planned.plan_request.machine
    assert not calibrate.load_calibration(machine).measured
    calibrate.save_measurement(machine, expected.key, 1.5, 0.01)
    compare_whole_run(2.0)
    kept = calibrate.load_calibration(machine).measured[expected.key]
    assert (kept.slowness, kept.times) == (1.5, 2)
    assert kept.memory is not None
    assert kept.memory > 0.01


def test_the_load_of_other_programs_is_divided_out_of_the_saved_time_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "measure_matmul_gflops", lambda: 50.0)
    kept: list[float] = []
    for core_gflops in (50.0, 100.0):  # this process has all of the CPU, then half of it
        expected = replace(make_prediction(8), calibration=Calibration(core_gflops))
        exhaust(run_probe(TimedEngine(1.0, GIB), SAMPLES, expected))
        measured = calibrate.load_calibration(expected.planned.plan_request.machine).measured
        kept.append(measured[expected.key].slowness)
        calibrate.calibration_file().unlink()
    assert kept[1] == pytest.approx(kept[0], rel=0.05)
