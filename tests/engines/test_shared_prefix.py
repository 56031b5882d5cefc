"""Prefixes that samples share are found and computed once per step, and the gradients stay the same."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support import tiny

from lorafit.data.batching import build_step_batch
from lorafit.data.micro_batch import MicroBatch, Sample
from lorafit.data.shared_prefix import (
    MIN_EXTRA_SAVED_TOKENS,
    MIN_PREFIX_TOKENS,
    SharedPrefix,
    find_shared_prefixes,
    prefix_lengths,
    repeated_prefixes,
)
from lorafit.engines.torch.engine import TorchEngine
from lorafit.planner.data_stats import Split, data_stats, training_shapes

NO_LIMIT = 10**9


def with_prefix(prefix: NDArray[Any] | range, samples: list[Sample]) -> list[Sample]:
    """Return `samples` after the same tokens, which are not in the loss, like a system prompt."""
    ids, mask = np.asarray(prefix, np.int32), np.zeros(len(prefix), np.bool_)
    return [Sample(np.concatenate([ids, s.input_ids]), np.concatenate([mask, s.target_mask])) for s in samples]


def two_prompts(each: int = 5) -> list[Sample]:
    """Return samples with prompts of 50 and 40 tokens in turn, and one sample without a prompt.

    The first 12 tokens of both prompts are equal, like those of a chat template.
    """
    rows = tiny.make_samples(2 * each + 1, longest=40)
    a = with_prefix(range(3, 53), rows[:each])
    b = with_prefix([*range(3, 15), *range(53, 81)], rows[each : 2 * each])
    return [*itertools.chain.from_iterable(zip(a, b, strict=True)), rows[-1]]


def shared(samples: list[Sample], most: int = NO_LIMIT) -> list[int]:
    """Return the length of each sample's shared prefix; all prefixes together have at most `most` tokens."""
    return prefix_lengths(find_shared_prefixes(samples, most), len(samples))


def test_a_prefix_ends_before_the_first_prediction() -> None:
    ids = np.arange(20, dtype=np.int32)
    mask = np.arange(20) >= 12
    assert shared([Sample(ids, mask), Sample(ids, mask)]) == [11, 11]
    assert shared([Sample(ids, mask)]) == [0]
    assert shared([]) == []
    assert shared([Sample(ids, mask), Sample(np.where(ids == 9, 0, ids), mask)]) == [9, 9]
    assert shared([Sample(ids, mask), Sample(np.where(ids == 2, 0, ids), mask)]) == [0, 0], "too short"
    assert shared([Sample(ids, np.zeros(20, np.bool_)), Sample(ids[:15], np.zeros(15, np.bool_))]) == [14, 14]


def test_two_prompts_are_two_prefixes_and_a_sample_without_one_has_none() -> None:
    assert shared(two_prompts()) == [50, 40] * 5 + [0]


def test_one_prefix_for_all_stays_if_several_save_little_more() -> None:
    template = range(3, 43)
    rows = [with_prefix([*template, *range(50, 50 + extra)], [s])[0] for extra, s in zip((12, 12, 0, 0), tiny.make_samples(4), strict=True)]  # fmt: skip
    for place in (2, 3):
        rows[place].input_ids[40] = place
    assert shared(rows) == [40] * 4


def test_all_prefixes_together_stay_within_the_limit() -> None:
    samples = two_prompts()
    assert shared(samples, 90) == [50, 40] * 5 + [0]
    assert shared(samples, 89) == [50, 0] * 5 + [0], "the prefix that saves most"
    assert shared(samples, 0) == [0] * 11
    assert shared(samples[:-1], 0) == [12] * 10, "the template, which all samples have"


def best_saving(heads: list[NDArray[Any]]) -> int:
    """Return the most tokens that shared prefixes can save, by trying every division of the samples."""
    if not heads:
        return 0
    best = 0
    for others in itertools.chain.from_iterable(
        itertools.combinations(range(1, len(heads)), n) for n in range(len(heads))
    ):
        mine = [heads[0], *(heads[i] for i in others)]
        length = next(
            (i for i in range(min(map(len, mine))) if len({int(h[i]) for h in mine}) > 1), min(map(len, mine))
        )
        rest = [head for i, head in enumerate(heads) if i and i not in others]
        best = max(best, (length if length >= MIN_PREFIX_TOKENS else 0) * (len(mine) - 1) + best_saving(rest))
    return best


@pytest.mark.parametrize("seed", range(12))
def test_no_other_division_saves_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    heads = [np.repeat(rng.integers(0, 2, 4), 40).astype(np.int32)[: rng.integers(100, 160)] for _i in range(6)]
    samples = [Sample(np.append(head, [7, 8]).astype(np.int32), np.arange(len(head) + 2) > len(head)) for head in heads]
    found, best = find_shared_prefixes(samples, NO_LIMIT), best_saving(heads)
    saved = sum(prefix.saved for prefix in found)
    one = len(found) == 1 and len(found[0].members) == len(samples)
    assert saved == best or (one and best < saved + MIN_EXTRA_SAVED_TOKENS)
    for prefix in found:
        first = heads[prefix.members[0]][: prefix.length]
        assert all(np.array_equal(heads[member][: prefix.length], first) for member in prefix.members)


def computed(engine: TorchEngine, micro_batches: list[MicroBatch]) -> tuple[float, dict[str, torch.Tensor], int]:
    """Return loss, gradients, and the number of rows in the first layer's forward passes."""
    assert engine.packed is not None
    layer, rows = engine.packed.layers[0], []
    forward = layer.forward

    def counted(x: torch.Tensor, *args: Any, **options: Any) -> Any:
        rows.append(len(x))
        return forward(x, *args, **options)

    layer.forward = counted  # type: ignore[method-assign]
    loss = engine._accumulate(1, micro_batches, sum(micro.num_targets for micro in micro_batches))
    layer.forward = forward  # type: ignore[method-assign]
    grads = {name: p.grad.clone() for name, p in engine._parameters().items() if p.grad is not None}
    engine.optimizer.drop_gradients()
    return loss, grads, sum(rows)


@pytest.mark.parametrize("recompute", [0, 2])
@pytest.mark.parametrize("budget", [10_000, 200])
def test_loss_and_gradients_are_those_of_samples_that_share_nothing(models: Path, recompute: int, budget: int) -> None:
    engine = tiny.open_engine(models / "llama", tiny.make_plan(recompute=recompute))
    tiny.fill_b(engine)
    samples = two_prompts()
    together = list(build_step_batch(samples, range(11), budget, 4096, shares=True).micro_batches)
    apart = [micro.single_sample(i) for micro in together for i in range(len(micro.index_in_step))]
    assert sorted(len(ids) for ids in repeated_prefixes(together)) == [40, 50]
    loss, grads, rows = computed(engine, together)
    evaluated = engine.evaluate(together)
    for micro in apart:
        micro.shared[:] = 0
    wanted_loss, wanted, all_rows = computed(engine, apart)
    assert all_rows - rows == 4 * 50 + 4 * 40
    assert loss == pytest.approx(wanted_loss, rel=1e-6)
    assert tiny.worst(grads, wanted) < 1e-5
    assert evaluated.loss_sum == pytest.approx(engine.evaluate(apart).loss_sum, rel=1e-6)


def test_a_prefix_of_only_one_sample_of_this_rank_is_not_computed_apart(models: Path) -> None:
    """The other samples with this prefix may belong to other ranks."""
    step = build_step_batch(two_prompts(each=1), range(3), 10_000, 4096, ranks=3, shares=True)
    assert repeated_prefixes(step.for_rank(0)) == []


def test_prefixes_count_once_per_micro_batch_and_in_no_sample() -> None:
    samples = two_prompts()
    apart, together = (build_step_batch(samples, range(11), 220, 4096, shares=shares) for shares in (False, True))
    assert len(together.micro_batches) < len(apart.micro_batches)
    assert all(micro.num_tokens - int(micro.shared.sum()) + 90 <= 220 for micro in together.micro_batches)
    assert together.num_tokens == apart.num_tokens


def test_the_planner_counts_prefixes_as_a_step_computes_them() -> None:
    samples = two_prompts()[:-1]
    lengths = np.asarray([len(sample) for sample in samples])
    prepared = SimpleNamespace(
        train=_Rows(samples), valid=_Rows(samples[:0]), digest="", total_targets=1, total_tokens=2
    )
    facts = data_stats(cast(Any, prepared))
    assert (facts.shared_tokens, facts.resident_prefix_tokens) == (45, 90)
    (shares,) = training_shapes(facts, Split(10, 10_000, 4096), seed=1)
    step = build_step_batch(samples, range(10), 10_000, 4096, shares=True)
    assert sum(share.tokens for share in shares) == pytest.approx(int(lengths.sum()) - 4 * 50 - 4 * 40, abs=3)
    assert len(shares) == 1 + len(step.micro_batches)


class _Rows(list[Sample]):
    """Samples with the interface of a prepared data set."""

    @property
    def lengths(self) -> NDArray[Any]:
        return np.asarray([len(sample) for sample in self])


def test_a_prefix_saves_its_tokens_in_all_samples_but_one() -> None:
    assert SharedPrefix(10, [1, 2, 3]).saved == 20
