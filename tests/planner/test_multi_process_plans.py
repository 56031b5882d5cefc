"""Plans for several processes: each process's share of the samples and of the machine, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from support.machines import CPU, cuda, facts, reason
from support.machines import T4 as T4_GPU
from support.plans import make_samples
from support.shapes import llama_1b

from lorafit.config import TrainConfig
from lorafit.data.batching import build_step_batch
from lorafit.errors import ConfigError, DoesNotFit
from lorafit.hardware.catalogue.find import machine_named
from lorafit.hardware.detect import Machine
from lorafit.planner.data_stats import DataStats, Split, training_shapes
from lorafit.planner.memory_budget import per_process
from lorafit.planner.planner import PlanResult, alternatives, make_plan_result
from lorafit.planner.throughput import rates
from lorafit.training.preview import preview_run
from lorafit.units import GIB


def planned(machine: Machine, processes: int, data: DataStats | None = None, **settings: object) -> PlanResult:
    """Plan Llama-3.2-1B on `machine` for `processes` processes."""
    config = TrainConfig(processes=processes, **settings)  # type: ignore[arg-type]
    return make_plan_result(config, per_process(machine, processes), llama_1b(), data or facts())


def test_two_processes_on_one_processor_share_its_cores_and_memory_and_are_no_faster_for_it() -> None:
    one, two = planned(CPU, 1), planned(CPU, 2)
    assert two.plan.available_bytes == one.plan.available_bytes // 2
    assert rates(two.plan_request.machine, one.chosen.layout).flops == rates(CPU, one.chosen.layout).flops / 2
    assert 1.0 <= two.estimate.step / one.estimate.step < 1.2
    assert "4 of 8 cores" in reason(two.plan, "processes")


def test_a_process_on_each_gpu_divides_the_time_of_steps_and_evaluations() -> None:
    machine = machine_named("p3.8xlarge")
    one, four = planned(machine, 1, facts(valid=300)), planned(machine, 4, facts(valid=300))
    assert four.plan.available_bytes == one.plan.available_bytes  # each process has its own GPU
    assert 2 < one.estimate.step / four.estimate.step <= 4
    assert 3.2 < one.estimate.evaluation / four.estimate.evaluation <= 4  # smaller micro-batches unpack more often
    assert "GPU" in reason(four.plan, "processes")


def test_a_plan_for_one_gpu_of_several_says_what_all_would_do() -> None:
    found = [other.value for other in alternatives(planned(machine_named("p3.8xlarge"), 1))]
    assert "--processes 4" in found
    assert not any("--processes" in other.value for other in alternatives(planned(machine_named("p3.2xlarge"), 1)))


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(5))
def test_the_micro_batches_that_are_timed_are_those_of_the_process_with_the_most_tokens(
    processes: int, seed: int
) -> None:
    samples = make_samples(8, seed=seed)
    lengths = np.array([len(sample) for sample in samples])
    step = build_step_batch(samples, range(8), 32, 4096, ranks=processes)
    dealt = [sum(micro.num_tokens for micro in step.for_rank(rank)) for rank in range(processes)]
    (shares,) = training_shapes(DataStats(lengths, lengths[:0], ""), Split(8, 32, 4096, processes), seed=0)
    assert sum(share.tokens for share in shares) == max(dealt)
    longest = int(lengths.max())
    assert max(dealt) <= max(longest, (8 + processes - 1) * longest // processes)  # the bound that the search uses


def test_a_process_with_few_samples_is_planned_with_no_more_tokens_than_it_can_come_to() -> None:
    data = facts(length=512, longest=512)
    one, eight = (planned(CPU, n, data, token_budget=4096, effective_batch=8) for n in (1, 8))
    assert one.chosen.layout.tokens == 4096
    assert eight.chosen.layout.tokens == 512 * 15 // 8
    assert eight.plan.predicted_peak_bytes < one.plan.predicted_peak_bytes


def test_where_so_many_processes_do_not_fit_it_is_said_how_many_do() -> None:
    machine = replace(CPU, available_bytes=16 * GIB)
    with pytest.raises(DoesNotFit) as error:
        planned(machine, 4, quantization="none", precision="fp32", shard="off")
    assert "--processes 2:" in str(error.value.fix)
    assert planned(machine, 2, quantization="none", precision="fp32", shard="off").chosen.fits


def test_planning_refuses_what_training_would() -> None:
    config = TrainConfig(demo=True, processes=2)
    with pytest.raises(ConfigError, match="each process needs its own"):
        preview_run(config, "T4")
    with pytest.raises(ConfigError, match="only one training process"):
        preview_run(config, "M3 Max 64GB")
    assert planned(replace(cuda(T4_GPU), gpus=(T4_GPU, T4_GPU)), 2).plan.processes == 2
