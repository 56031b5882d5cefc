"""The plan changes the speed of a run, never its result: each split and recompute setting gives the same numbers."""

import itertools
from functools import cache
from pathlib import Path

import pytest
import torch
from support import tiny
from support.dropout_reference import dropout_keep

from lorafit import hashing
from lorafit.data.batching import build_step_batch, group_by_budget
from lorafit.engines.torch.engine import TorchEngine
from lorafit.engines.torch.lora import mix_
from lorafit.planner.plan import Plan
from lorafit.planner.schedule import lr_at, step_samples, stream_length

SAMPLES = tiny.make_samples(32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model("llama", tmp_path_factory.mktemp("model"))


def train_with_budgets(
    model: Path, plan: Plan, budgets: list[int]
) -> tuple[TorchEngine, list[float], dict[str, torch.Tensor]]:
    """Run all steps of `plan`, which use the `budgets` in turn. Return the engine, losses and step 1's gradients."""
    engine = tiny.open_engine(model, plan)
    tiny.fill_b(engine)
    first = build_step_batch(SAMPLES, step_samples(plan, 1), budgets[0], plan.max_micro_batch)
    grads = tiny.gradients(engine, 1, first.micro_batches, first.num_targets)
    losses = []
    for step in range(1, plan.steps + 1):
        data = build_step_batch(SAMPLES, step_samples(plan, step), budgets[step % len(budgets)], plan.max_micro_batch)
        result = engine.step(step, data.micro_batches, data.num_targets, lr_at(step, plan))
        losses.append(result.loss_sum / data.num_targets)
    return engine, losses, grads


@cache
def unsplit(model: Path, dropout: float) -> tuple[TorchEngine, list[float], dict[str, torch.Tensor]]:
    return train_with_budgets(model, tiny.make_plan(lora_dropout=dropout), [4096])


def b_distance(found: TorchEngine, expected: TorchEngine) -> float:
    """Return the norm of the difference of all lora_B matrices, over the norm of the expected ones."""
    pairs = [(found._parameters()[n].detach(), p.detach()) for n, p in expected._parameters().items() if "lora_B" in n]
    difference = sum(float((a - b).norm() ** 2) for a, b in pairs)
    return float((difference / sum(float(b.norm() ** 2) for _a, b in pairs)) ** 0.5)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("recompute", [0, 2, 3])
@pytest.mark.parametrize(
    ("max_samples", "budgets"), [(4096, [4096]), (4096, [100]), (1, [4096]), (4096, [32, 300, 64])]
)
def test_any_split_and_any_recompute_learn_the_same(
    model: Path, dropout: float, recompute: int, max_samples: int, budgets: list[int]
) -> None:
    whole, losses, grads = unsplit(model, dropout)
    plan = tiny.make_plan(lora_dropout=dropout, recompute=recompute, max_micro_batch=max_samples)
    other, other_losses, other_grads = train_with_budgets(model, plan, budgets)
    assert other_losses == pytest.approx(losses, rel=1e-5)
    assert tiny.worst(other_grads, grads) < 1e-5
    assert b_distance(other, whole) < 1e-3


def test_the_splits_of_these_tests_are_one_three_and_sixteen_micro_batches() -> None:
    lengths = [len(SAMPLES[row]) for row in step_samples(tiny.make_plan(), 1)]
    assert [len(group_by_budget(lengths, *how)) for how in ((4096, 4096), (100, 4096), (4096, 1))] == [1, 3, 16]


def test_dropout_drops_and_recompute_draws_the_same(model: Path) -> None:
    _engine, kept, _grads = train_with_budgets(model, tiny.make_plan(), [4096])
    _engine, dropped, _grads = train_with_budgets(model, tiny.make_plan(lora_dropout=0.5), [4096])
    assert kept != pytest.approx(dropped, rel=1e-4)


def test_equal_plans_give_equal_bits(model: Path) -> None:
    plan = tiny.make_plan(lora_dropout=0.1, recompute=1)
    one, losses, _grads = train_with_budgets(model, plan, [100])
    two, again, _grads = train_with_budgets(model, plan, [100])
    assert losses == again
    assert all(torch.equal(p, two._parameters()[n]) for n, p in one._parameters().items())


def test_torch_draws_the_dropout_that_the_reference_draws(model: Path) -> None:
    engine = tiny.open_engine(model, tiny.make_plan(lora_dropout=0.3))
    name, layer = next(iter(engine.layers.items()))
    rows = hashing.dropout_row_keys(42, 3, torch.arange(50).numpy() % 7, torch.arange(50).numpy())
    engine.dropout.set_keys(rows)
    found = layer.apply_dropout(torch.ones(50, 32))
    expected = torch.from_numpy(dropout_keep(rows, name, 32, 0.3))
    assert torch.equal(found != 0, expected)
    assert float(found.max()) == pytest.approx(1 / 0.7)
    words = torch.arange(-1000, 1000, dtype=torch.int32) * 2_000_003
    assert (mix_(words.clone()).numpy().view("uint32") == hashing.mix(words.numpy().view("uint32"))).all()


def test_every_row_is_used_once_an_epoch_and_steps_cross_its_end() -> None:
    plan = tiny.make_plan(train_samples=10, effective_batch=4, num_epochs=2.5, steps=7)
    stream = [row for step in range(1, 8) for row in step_samples(plan, step)]
    assert len(stream) == stream_length(plan) == 25
    assert sorted(stream[:10]) == sorted(stream[10:20]) == list(range(10))
    assert stream[:10] != stream[10:20]
    assert len(step_samples(plan, 7)) == 1


def test_max_steps_beyond_the_epochs_starts_another_epoch() -> None:
    plan = tiny.make_plan(train_samples=10, effective_batch=4, num_epochs=1.0, steps=6)
    assert stream_length(plan) == 24
    assert all(len(step_samples(plan, step)) == 4 for step in range(1, 7))


def test_a_split_keeps_every_sample_once_within_the_budget() -> None:
    lengths = [5, 90, 3, 40, 40, 8, 120, 1]
    shares = group_by_budget(lengths, 100, 3)
    assert sorted(i for share in shares for i in share) == list(range(8))
    assert all(sum(lengths[i] for i in share) <= 100 or len(share) == 1 for share in shares)
    assert max(len(share) for share in shares) <= 3


def test_the_learning_rate_rises_then_falls_and_is_never_zero() -> None:
    plan = tiny.make_plan(steps=20, warmup_steps=4, learning_rate=1.0)
    rates = [lr_at(step, plan) for step in range(1, 21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(b < a for a, b in itertools.pairwise(rates[4:]))
    assert rates[4] == 1.0
    assert rates[-1] > 0
