"""Several processes learn the same as one: two real processes over gloo, with and without sharding."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny, two_ranks
from support.paths import SUPPORT

from lorafit.data.batching import build_step_batch, shard_by_tokens
from lorafit.distributed.collectives import SINGLE_PROCESS
from lorafit.distributed.launch import launch_ranks, rank_environments, rank_info
from lorafit.errors import ConfigError
from lorafit.planner.schedule import step_samples


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def both(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of each of two processes, in all scenarios."""
    return train_in_two_processes(model, tmp_path_factory.mktemp("pair") / "results", list(two_ranks.SCENARIOS))


def train_in_two_processes(model: Path, out: Path, names: list[str]) -> list[dict[str, Any]]:
    """Train the scenarios `names`, and return the results of each of the two processes."""
    command = [sys.executable, str(SUPPORT / "two_ranks.py"), str(model), str(out), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return [two_ranks.read(out.with_suffix(f".{rank}")) for rank in range(2)]


@pytest.mark.parametrize("name", two_ranks.SCENARIOS)
def test_two_processes_learn_what_one_learns(model: Path, both: list[dict[str, Any]], name: str) -> None:
    check_same_training(both[0][name], dict(two_ranks.seen(model, name)), 1e-5)


def check_same_training(found: dict[str, Any], wanted: dict[str, Any], gradient_off: float) -> None:
    """Compare losses (1e-5), gradients (`gradient_off`) and the trained lora_B (1e-3), all relative."""
    assert found["losses"] == pytest.approx(wanted["losses"], rel=1e-5)
    assert found["evaluated"] == pytest.approx(wanted["evaluated"], rel=1e-5)
    assert tiny.worst(found["gradients"], wanted["gradients"]) < gradient_off
    names = sorted(name for name in wanted["weights"] if "lora_B" in name)
    found_b, wanted_b = (torch.cat([seen["weights"][n].flatten() for n in names]) for seen in (found, wanted))
    assert float((found_b - wanted_b).norm() / wanted_b.norm()) < 1e-3


@pytest.mark.slow
def test_on_the_demo_model_two_learn_what_one_learns_whole_and_sharded(demo_folder: Path, tmp_path: Path) -> None:
    names = ["fast", "sharded"]
    both = train_in_two_processes(demo_folder, tmp_path / "results", names)
    for name in names:
        check_same_training(both[0][name], dict(two_ranks.seen(demo_folder, name)), 1e-5)
    assert both[0]["sharded"]["held"] < 0.52 * both[0]["fast"]["held"]


@pytest.mark.parametrize("name", two_ranks.SCENARIOS)
def test_both_processes_end_with_the_same_bits(both: list[dict[str, Any]], name: str) -> None:
    first, second = (seen[name] for seen in both)
    assert all(torch.equal(tensor, second["weights"][n]) for n, tensor in first["weights"].items())
    assert first["losses"] == second["losses"]
    assert first["evaluated"] == second["evaluated"]


def test_a_sharded_base_is_really_divided(both: list[dict[str, Any]]) -> None:
    whole = both[0]["fast"]["held"]
    held = [seen["sharded"]["held"] for seen in both]
    assert sum(held) == pytest.approx(whole, rel=0.02)
    assert max(held) < 0.52 * whole


def test_out_of_memory_in_one_process_is_out_of_memory_in_both(both: list[dict[str, Any]]) -> None:
    wanted = f"{both[0]['fast']['losses'][0]:.4f}"
    assert [seen["out of memory"] for seen in both] == [["out of memory", wanted]] * 2


def test_every_process_receives_what_the_first_broadcasts(both: list[dict[str, Any]]) -> None:
    assert [seen["told"] for seen in both] == [{"who": 0}] * 2


def test_one_process_agrees_with_itself() -> None:
    with SINGLE_PROCESS.sync_oom():
        assert (
            SINGLE_PROCESS.all_reduce_max(3.0),
            SINGLE_PROCESS.all_reduce_sum(3.0),
            SINGLE_PROCESS.broadcast_json({"a": 1}),
        ) == (3.0, 3.0, {"a": 1})


# Distribution of the samples


def test_samples_are_dealt_out_evenly_by_tokens_and_each_once() -> None:
    lengths = [500, 20, 480, 300, 310, 90, 100, 40]
    shares = shard_by_tokens(lengths, 3)
    assert sorted(i for share in shares for i in share) == list(range(8))
    tokens = [sum(lengths[i] for i in share) for share in shares]
    assert max(tokens) - min(tokens) <= max(lengths) * 0.1
    assert shard_by_tokens(lengths, 3) == shares
    assert shard_by_tokens(lengths, 1) == [list(range(8))]
    assert shard_by_tokens([7], 3) == [[0], [], []]


def test_the_shares_of_all_ranks_are_the_step() -> None:
    plan, samples = tiny.make_plan(), tiny.make_samples(32)
    rows = step_samples(plan, 1)
    whole, parts = build_step_batch(samples, rows, 60, 4096), build_step_batch(samples, rows, 60, 4096, 3)
    assert (whole.num_targets, whole.num_tokens) == (parts.num_targets, parts.num_tokens)
    shares = [parts.for_rank(rank) for rank in range(3)]
    assert sorted(p for share in shares for m in share for p in m.index_in_step.tolist()) == list(range(16))
    assert all(micro.num_tokens <= 60 for share in shares for micro in share)
    assert whole.for_rank(0) == list(whole.micro_batches)


# Ranks and their processes


def test_the_rank_is_read_from_torchruns_environment() -> None:
    environ = rank_environments(3, 1234)[2]
    info = rank_info(environ)
    assert (info.rank, info.count, info.local_rank, info.local_count, info.leads) == (2, 3, 2, 3, False)
    assert rank_info({}).leads
    with pytest.raises(ConfigError, match="RANK"):
        rank_info({"RANK": "0"})
    with pytest.raises(ConfigError):
        rank_info({**environ, "WORLD_SIZE": "many"})


def test_a_process_that_dies_is_named_with_its_signal_and_last_words() -> None:
    code = "import os, sys; print('the last words', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)"
    with launch_ranks(2, 1, (sys.executable, "-c", code)) as others:
        others.processes[0].wait(60)
        dead = others.first_failure()
    assert dead is not None
    assert dead[0] == 1
    assert "SIGKILL" in dead[1]
    assert "the last words" in dead[1]


def test_a_process_that_ends_well_is_not_dead() -> None:
    with launch_ranks(2, 1, (sys.executable, "-c", "import os; assert os.environ['RANK'] == '1'")) as others:
        others.processes[0].wait(60)
        assert others.first_failure() is None
    assert "RANK" not in os.environ
