"""The loss, computed in blocks of the vocabulary, equals cross-entropy and its gradient for every kind of LM head."""

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lorafit.engines.torch.loss import LMHead, target_loss
from lorafit.engines.torch.low_bit_linear import LowBitLinear
from lorafit.planner.memory import WEIGHT_BLOCK

HIDDEN, TARGETS = 1024, 23
VOCAB = 2 * WEIGHT_BLOCK // HIDDEN + 103  # two full blocks of rows and a part of a third
MakeHead = Callable[[bool, torch.dtype], nn.Linear]


@pytest.fixture(scope="module")
def head_linear() -> MakeHead:
    """A function that returns the linear layer of a head; each layer is made once."""
    return functools.cache(_head_linear)


def _head_linear(bias: bool, dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    linear = nn.Linear(HIDDEN, VOCAB, bias=bias).requires_grad_(False)
    linear.weight.data = linear.weight.data.mul_(4).to(dtype)
    return linear if dtype == torch.float32 else LowBitLinear.from_linear(linear)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 3.0), (2.0, 5.0)])
@pytest.mark.parametrize("chunk", [5, 100])
def test_it_equals_cross_entropy_in_float64(
    head_linear: MakeHead, bias: bool, dtype: torch.dtype, scale: float, softcap: float | None, chunk: int
) -> None:
    linear = head_linear(bias, dtype)
    hidden, targets = torch.randn(TARGETS, HIDDEN), torch.randint(0, VOCAB, (TARGETS,))
    exact = hidden.double().requires_grad_()
    logits = F.linear(exact, linear.weight.double(), linear.bias.double() if bias else None) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    wanted = F.cross_entropy(logits, targets, reduction="sum")
    (wanted_grad,) = torch.autograd.grad(0.5 * wanted, exact)
    loss, grad = target_loss(hidden, targets, LMHead(linear, scale, softcap), chunk, 0.5)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-6)
    assert grad is not None
    assert float((grad - wanted_grad).norm() / wanted_grad.norm()) < 2e-6
    assert float(target_loss(hidden, targets, LMHead(linear, scale, softcap), chunk, None)[0]) == float(loss)


def test_logits_that_are_huge_do_not_overflow(head_linear: MakeHead) -> None:
    linear = head_linear(False, torch.float32)
    hidden, targets = torch.randn(4, HIDDEN) * 1000, torch.randint(0, VOCAB, (4,))
    loss, grad = target_loss(hidden, targets, LMHead(linear), 4, 1.0)
    assert float(loss) == pytest.approx(float(F.cross_entropy(linear(hidden), targets, reduction="sum")), rel=1e-5)
    assert grad is not None
    assert bool(torch.isfinite(grad).all())
