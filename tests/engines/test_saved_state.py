"""Saved state restores an engine: the adapter and the optimizer's moments."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from support import tiny

from lorafit.data.batching import build_step_batch
from lorafit.errors import AdapterError
from lorafit.planner.schedule import step_samples


def test_layers_that_take_no_part_in_the_forward_pass_are_saved_and_loaded_like_the_others(
    models: Path, tmp_path: Path
) -> None:
    plan, samples = tiny.make_plan(), tiny.make_samples(32)
    engine = tiny.open_engine(models / "mamba", plan)
    data = build_step_batch(samples, step_samples(plan, 1), 64, 4096)
    engine.step(1, data.micro_batches, data.num_targets, 1e-3)
    engine.save(tmp_path)
    tiny.open_engine(models / "mamba", plan).load(tmp_path)


def test_an_adapter_for_another_base_is_refused(models: Path, tmp_path: Path) -> None:
    tiny.open_engine(models / "qwen3", tiny.make_plan()).save_adapter(tmp_path)
    engine = tiny.open_engine(models / "llama", None)
    with pytest.raises(AdapterError) as error:
        engine.load_adapter(tmp_path)
    assert str(models / "qwen3") in error.value.what


@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_8bit"])
def test_moments_move_from_one_optimizer_to_another(models: Path, tmp_path: Path, optimizer: str) -> None:
    plan, samples = tiny.make_plan(optimizer=optimizer, lora_r=64), tiny.make_samples(32)
    data = build_step_batch(samples, step_samples(plan, 1), plan.token_budget, plan.max_micro_batch)
    engine = tiny.open_engine(models / "llama", plan)
    for step in (1, 2):
        engine.step(step, data.micro_batches, data.num_targets, 1e-3)
    engine.save(tmp_path)
    for kind, tolerance in ((optimizer, 0.0), ("adamw", 0.0), ("paged_adamw_8bit", 0.05)):
        other = tiny.open_engine(models / "llama", dataclasses.replace(plan, optimizer=kind))
        other.load(tmp_path)
        after = other.optimizer.moments()
        for moment, arrays in engine.optimizer.moments().items():
            for name, before in arrays.items():
                off = np.linalg.norm(after[moment][name] - before)
                assert off <= tolerance * np.linalg.norm(before) + 1e-12, (kind, name, moment)


@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_8bit"])
def test_moments_exist_before_the_first_step_so_that_no_update_fails_halfway(
    models: Path, tmp_path: Path, optimizer: str
) -> None:
    plan = tiny.make_plan(optimizer=optimizer)
    engine = tiny.open_engine(models / "llama", plan)
    states = engine.optimizer._torch.state
    assert all(len(states[p]) >= 3 for p in engine._parameters().values())
    engine.save(tmp_path)
    tiny.open_engine(models / "llama", plan).load(tmp_path)
