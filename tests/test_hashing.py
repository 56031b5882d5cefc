"""The hash is fixed, equal in int32 arithmetic, and random enough for dropout, order and initialization."""

import numpy as np
import pytest
import torch
from support.dropout_reference import dropout_keep

from lorafit.hashing import MULTIPLIERS, SHIFTS, dropout_row_keys, fold, mix, permutation, uniform

GOLDEN_MIX = [0, 114555507, 229111015, 3652544131]
GOLDEN_FOLD = [2654435769, 3294826546, 695427275]
GOLDEN_UNIFORM = [4450998, 3847040, 13950994, 11444215]
GOLDEN_PERMUTATION = [9, 1, 0, 4, 2, 3, 6, 5, 8, 7]
GOLDEN_KEYS = [418814065, 2427271848, 485338684]
GOLDEN_KEEP = [255, 255, 253, 242, 214, 99]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation coefficient of the elements of two arrays."""
    return float(np.corrcoef(a.ravel().astype(np.float64), b.ravel().astype(np.float64))[0, 1])


def keep_mask(
    seed: int = 42, step: int = 1, module: str = "q", p: float = 0.5, rows: int = 512, channels: int = 512
) -> np.ndarray:
    """Return a dropout mask [rows, channels], True where an input is kept, for samples of 64 tokens."""
    samples, positions = np.repeat(np.arange(rows // 64), 64), np.tile(np.arange(64), rows // 64)
    return dropout_keep(dropout_row_keys(seed, step, samples, positions), module, channels, p)


def test_the_values_never_change() -> None:
    assert mix([0, 1, 2, 0xFFFFFFFF]).tolist() == GOLDEN_MIX
    assert [int(fold()), int(fold(0)), int(fold(42, "model.layers.0.self_attn.q_proj", 7))] == GOLDEN_FOLD
    assert (uniform(42, 4) * 2**24).astype(int).tolist() == GOLDEN_UNIFORM
    assert permutation(42, 0, 10).tolist() == GOLDEN_PERMUTATION
    keys = dropout_row_keys(42, 3, np.array([0, 0, 1]), np.array([0, 1, 0]))
    assert keys.tolist() == GOLDEN_KEYS
    assert np.packbits(dropout_keep(keys, "q_proj", 16, 0.25)).tolist() == GOLDEN_KEEP


def test_int32_arithmetic_that_wraps_gives_the_same_bits() -> None:
    words = np.random.default_rng(0).integers(0, 2**32, 10_000, dtype=np.uint32)
    x = torch.from_numpy(words.view(np.int32).copy())
    for shift, multiplier in zip(SHIFTS, MULTIPLIERS, strict=False):
        x = x ^ ((x >> shift) & ((1 << (32 - shift)) - 1))
        x = x * (multiplier - 2**32 if multiplier >= 2**31 else multiplier)
    x = x ^ ((x >> SHIFTS[-1]) & ((1 << (32 - SHIFTS[-1])) - 1))
    assert np.array_equal(x.numpy().view(np.uint32), mix(words))


def test_each_input_bit_flips_half_of_the_output_bits() -> None:
    words = np.arange(20_000, dtype=np.uint32)
    for bit in range(32):
        flipped = mix(words) ^ mix(words ^ np.uint32(1 << bit))
        shares = [float((flipped >> np.uint32(out) & 1).mean()) for out in range(32)]
        assert max(abs(share - 0.5) for share in shares) < 0.03, bit


def test_mix_maps_no_two_words_on_one() -> None:
    assert len(np.unique(mix(np.arange(1_000_000, dtype=np.uint32)))) == 1_000_000


def test_fold_depends_on_order_type_and_number_of_its_parts() -> None:
    folds = [
        fold(1, 2),
        fold(2, 1),
        fold(1),
        fold(2),
        fold("1"),
        fold("1", 2),
        fold(1, 2, 0),
        fold(0),
        fold(0, 0),
        fold(),
    ]
    assert len({int(f) for f in folds}) == len(folds)


def test_fold_over_an_array_equals_fold_over_its_elements_and_ints_wrap() -> None:
    assert fold(7, np.arange(-2, 5)).tolist() == [int(fold(7, i)) for i in range(-2, 5)]
    assert fold(2**32 + 5) == fold(5)
    assert fold(np.arange(3)[:, None], np.arange(4)).shape == (3, 4)


def test_scalars_and_arrays_hash_without_overflow_warnings() -> None:
    with np.errstate(all="raise"):
        assert int(mix(0xFFFFFFFF)) == int(mix(np.array([0xFFFFFFFF], np.uint32))[0])


def test_uniform_fills_the_unit_interval_evenly() -> None:
    for key in (0, 1, 42, 2**32 - 1):
        draws = uniform(key, 100_000)
        assert draws.dtype == np.float32
        assert draws.min() >= 0
        assert draws.max() < 1
        counts = np.bincount((draws * 256).astype(int), minlength=256)
        chi_square = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
        assert 160 < chi_square < 360  # 255 degrees of freedom: mean 255, standard deviation 22.6
        assert abs(draws.mean() - 0.5) < 0.003
        assert abs(draws.var() - 1 / 12) < 0.001


def test_uniform_draws_of_neighbouring_keys_and_counters_are_unrelated() -> None:
    draws = uniform(42, 100_000)
    assert abs(correlation(draws[1:], draws[:-1])) < 0.015
    for other in (43, 42 ^ 4096, 42 + 2**31):
        assert abs(correlation(draws, uniform(other, 100_000))) < 0.015
        assert len(np.intersect1d(draws[:1000], uniform(other, 1000))) <= 2  # not a permutation of the same numbers
    assert np.array_equal(draws[:10], uniform(42, 10))


def test_a_permutation_holds_each_row_once_and_differs_by_seed_and_epoch() -> None:
    orders = [permutation(seed, epoch, 1000) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    for order in orders:
        assert sorted(order.tolist()) == list(range(1000))
        assert abs(correlation(order, np.arange(1000))) < 0.1
    assert all(int((a == b).sum()) < 10 for i, a in enumerate(orders) for b in orders[:i])
    assert permutation(0, 0, 0).tolist() == []
    assert permutation(0, 0, 1).tolist() == [0]


def test_a_million_rows_are_permuted_in_the_order_of_hashes_without_ties() -> None:
    order = permutation(42, 3, 1_000_000)
    hashes = fold(42, 3, order)
    assert np.bincount(order).max() == 1
    assert (hashes[1:] > hashes[:-1]).all()


@pytest.mark.parametrize("p", [0.0, 0.05, 0.1, 0.5, 0.9])
def test_dropout_drops_the_share_that_was_asked_for_in_rows_and_columns(p: float) -> None:
    keep = keep_mask(p=p)
    assert abs(keep.mean() - (1 - p)) < 0.004
    assert abs(keep.mean(0) - (1 - p)).max() < 0.12
    assert abs(keep.mean(1) - (1 - p)).max() < 0.12
    if p:
        spread = keep.mean(0).std() / np.sqrt(p * (1 - p) / 512)
        assert 0.85 < spread < 1.15  # of the standard deviation of a binomial distribution


def test_dropout_masks_of_neighbours_are_unrelated() -> None:
    keep = keep_mask()
    others = [
        keep_mask(step=2),
        keep_mask(seed=43),
        keep_mask(module="k"),
        np.roll(keep, 1, 0),
        np.roll(keep, 1, 1),
        np.roll(keep, 64, 0),
    ]
    assert all(abs(correlation(keep, other)) < 0.01 for other in others)


def test_dropout_does_not_depend_on_how_a_step_is_split() -> None:
    samples, positions = np.repeat([0, 1, 2], 5), np.tile(np.arange(5), 3)
    whole = dropout_keep(dropout_row_keys(1, 2, samples, positions), "v", 64, 0.1)
    part = dropout_keep(dropout_row_keys(1, 2, samples[5:10], positions[5:10]), "v", 64, 0.1)
    assert np.array_equal(whole[5:10], part)
