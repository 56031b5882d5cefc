"""MLX's sums over a whole vocabulary or matrix are accurate, though its CPU backend adds float32 numbers one by one."""

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core", reason="MLX has no wheel here, or is not installed: pip install 'lorafit[mlx]'")

from lorafit.engines.mlx import device  # noqa: E402
from lorafit.engines.mlx.arithmetic import row_sums  # noqa: E402
from lorafit.engines.mlx.engine import _norm  # noqa: E402
from lorafit.engines.mlx.loss import MLXHead, evaluation_loss, target_loss  # noqa: E402
from lorafit.engines.mlx.matrix import Matrix  # noqa: E402

VOCAB, HIDDEN, TARGETS = 50_001, 16, 20


@pytest.fixture(autouse=True)
def on_the_cpu() -> None:
    device.use_device("cpu", "fp32")


@pytest.mark.parametrize("count", [3, 64, 49_152, VOCAB])
def test_rows_as_long_as_a_vocabulary_are_summed_to_float32s_precision(count: int) -> None:
    x = np.exp(np.random.default_rng(0).normal(-9, 3, (4, count))).astype(np.float32)
    found = np.array(row_sums(mx.array(x))).astype(np.float64)
    assert found == pytest.approx(x.astype(np.float64).sum(-1, keepdims=True), rel=5e-6)


def test_a_loss_over_a_real_vocabulary_and_its_gradient_equal_float64() -> None:
    rng = np.random.default_rng(0)
    hidden, weight = rng.normal(0, 1, (TARGETS, HIDDEN)), rng.normal(0, 0.7, (VOCAB, HIDDEN))
    targets = rng.integers(0, VOCAB, TARGETS)
    head = MLXHead(Matrix(mx.array(weight.astype(np.float32))))
    args = mx.array(targets.astype(np.int32)), 7
    found, grad = mx.value_and_grad(lambda h: target_loss(head, h, *args))(mx.array(hidden.astype(np.float32)))
    logits = hidden @ weight.T
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    right = -np.log(probabilities[np.arange(TARGETS), targets]).sum()
    probabilities[np.arange(TARGETS), targets] -= 1
    wanted = probabilities @ weight
    assert float(found) == pytest.approx(right, rel=1e-6)
    assert float(evaluation_loss(head, mx.array(hidden.astype(np.float32)), *args)) == pytest.approx(right, rel=1e-6)
    off = np.linalg.norm(np.array(grad) - wanted) / np.linalg.norm(wanted)
    assert off < 2e-5  # BLAS computes the matmul over the vocabulary


def test_the_norm_of_large_gradients_equals_float64() -> None:
    grads = [np.random.default_rng(seed).normal(size=(8192, 64)).astype(np.float32) for seed in range(2)]
    right = sum(float((grad.astype(np.float64) ** 2).sum()) for grad in grads) ** 0.5
    assert _norm({str(i): mx.array(grad) for i, grad in enumerate(grads)}) == pytest.approx(right, rel=2e-6)
