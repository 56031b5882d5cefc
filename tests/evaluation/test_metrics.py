"""Metrics of a comparison, checked against direct calculations."""

import random
import sys
from collections import Counter

import numpy as np
import pytest

from lorafit.errors import LorafitError
from lorafit.evaluation import metrics
from lorafit.evaluation.metrics import LossDifference, bootstrap, citations, reference_scores


def losses(samples: int, seed: int = 0) -> tuple[metrics.Float64, metrics.Float64, metrics.NDArray[np.int64]]:
    """Return loss sums of base and tuned model, and target tokens, of samples with different lengths and gains."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 200, samples)
    return tokens * rng.normal(2.8, 0.2, samples), tokens * rng.normal(2.0, 0.4, samples), tokens


def test_the_interval_is_that_of_a_direct_simulation() -> None:
    base, tuned, tokens = losses(20)
    found = bootstrap(base, tuned, tokens)
    assert found is not None
    draw = random.Random(7)
    means = []
    for _i in range(20_000):
        drawn = [draw.randrange(20) for _place in range(20)]
        means.append(sum(tuned[i] - base[i] for i in drawn) / sum(int(tokens[i]) for i in drawn))
    means.sort()
    assert found.mean == pytest.approx((tuned.sum() - base.sum()) / tokens.sum(), rel=1e-12)
    assert found.low == pytest.approx(means[500], abs=0.01)
    assert found.high == pytest.approx(means[19_500], abs=0.01)
    assert found.low < found.mean < found.high


def test_long_samples_count_by_their_tokens() -> None:
    base, tuned = np.array([10.0, 1000.0]), np.array([20.0, 900.0])
    found = bootstrap(base, tuned, np.array([10, 1000]))
    assert found is not None
    assert found.mean == pytest.approx(-90 / 1010)
    assert (found.low, found.high) == (pytest.approx(-0.1), pytest.approx(1.0))


@pytest.mark.parametrize("samples", [33, 900])
def test_the_same_losses_give_the_same_interval_however_many_are_drawn_at_once(samples: int) -> None:
    """33 samples are drawn in one chunk and 900 in three. In both cases one draw gives the same interval."""
    base, tuned, tokens = losses(samples)
    assert -(-metrics.RESAMPLES // (metrics.CHUNK // samples)) == {33: 1, 900: 3}[samples]
    drawn = np.random.default_rng(metrics.SEED).integers(0, samples, (metrics.RESAMPLES, samples))
    means = (tuned - base)[drawn].sum(1) / tokens[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    whole = LossDifference(float((tuned - base).sum() / tokens.sum()), float(low), float(high))
    assert bootstrap(*losses(samples)) == whole
    assert bootstrap(*losses(samples)) == whole


def test_equal_losses_have_difference_zero_and_one_sample_has_none() -> None:
    base, _tuned, tokens = losses(9)
    assert bootstrap(base, base, tokens) == LossDifference(0.0, 0.0, 0.0)
    assert bootstrap(base[:1], base[:1], tokens[:1]) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("根据《民法典》第一千零七十九条，可以。", {"《民法典》第一千零七十九条"}),
        ("《劳动合同法》 第 82 条和《刑法》第二百三十四条第二款", {"《劳动合同法》第82条", "《刑法》第二百三十四条"}),
        ("《刑法》第一百二十条之一", {"《刑法》第一百二十条"}),
        ("《民法典》规定，第三条合同有效", set()),
        ("民法典第一千条", set()),
        ("《民法典》第三章", set()),
        ("", set()),
    ],
)
def test_a_statute_is_a_title_and_an_article(text: str, found: set[str]) -> None:
    assert citations(text) == found


def chrf(answer: str, reference: str) -> float:
    """F2 of the mean precision and the mean recall of character n-grams of orders 1 to 6 (Popović 2015)."""
    precisions, recalls = [], []
    for n in range(1, 7):
        a, r = (Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t in (answer, reference))
        same = (a & r).total()
        precisions.append(same / a.total())
        recalls.append(same / r.total())
    precision, recall = sum(precisions) / 6, sum(recalls) / 6
    return 100 * 5 * precision * recall / (4 * precision + recall)


def test_chrf_and_rouge_are_those_computed_by_hand() -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rapidfuzz")
    answer, reference = "可以向法院起诉离婚", "可以直接向人民法院起诉"
    found = reference_scores([answer], [reference])
    assert found.chrf == pytest.approx(chrf(answer, reference))
    # The longest common subsequence is 可以向法院起诉: 7 of 9 and of 11 characters.
    assert found.rouge_l == pytest.approx(100 * 2 * 7 / (9 + 11))


def test_an_english_word_is_one_token_and_case_does_not_matter() -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rapidfuzz")
    # 使, 用, lora and two more characters: five tokens each, three of them in common.
    assert reference_scores(["使用lora训练"], ["使用LoRA微调"]).rouge_l == pytest.approx(100 * 2 * 3 / (5 + 5))
    same, empty = reference_scores(["一样。"], ["一样。"]), reference_scores([""], ["一样。"])
    assert (same.chrf, same.rouge_l) == (pytest.approx(100), pytest.approx(100))
    assert (empty.chrf, empty.rouge_l) == (0, 0)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sacrebleu", "sacrebleu.metrics"):
        monkeypatch.setitem(sys.modules, module, None)  # for Python, a package that is not installed
    with pytest.raises(LorafitError) as caught:
        reference_scores(["一"], ["一"])
    assert "sacrebleu" in caught.value.what
    assert "not installed" in caught.value.what
    assert "pip install sacrebleu rapidfuzz" in str(caught.value.fix)
