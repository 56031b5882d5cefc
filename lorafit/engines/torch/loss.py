"""Cross-entropy at target positions only, in chunks, with its gradient computed in the forward pass.

The head is frozen, so the loss needs only the gradient at the hidden states. Logits exist for one chunk of targets and
one block of the vocabulary at a time.
Letters: T tokens, N targets, H hidden, V vocabulary, B a block of it.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorafit.engines.torch.low_bit_linear import LowBitLinear, weight_blocks


@dataclass(frozen=True)
class LMHead:
    """The model's LM head: the linear layer, then logit scale and soft-cap where the model has them."""

    linear: Any
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        logits_NV: Tensor = self.linear(hidden_NH)
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.softcap is not None:
            logits_NV = torch.tanh(logits_NV / self.softcap) * self.softcap
        return logits_NV

    def logits_from_matmul(self, product_NB: Tensor, rows: slice) -> Tensor:
        """Return float32 logits from the matmul with the linear layer's `rows`."""
        logits_NB = product_NB if self.linear.bias is None else product_NB + self.linear.bias[rows].detach()
        logits_NB = logits_NB.float()
        if self.scale != 1.0:
            logits_NB = logits_NB.mul_(self.scale)
        if self.softcap is not None:
            logits_NB = logits_NB.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits_NB

    def softcap_derivative(self, logits: Tensor) -> Tensor | None:
        """Return the soft-cap's derivative at the capped `logits`; None without a soft-cap."""
        return None if self.softcap is None else 1 - (logits / self.softcap).square_()


def head_of(model: PreTrainedModel) -> LMHead:
    """Return the LM head of `model`, with its logit scale and soft-cap.

    Cohere and Falcon-H1 multiply logits, Granite divides them, Gemma 2 and RecurrentGemma cap them.
    """
    text = model.config.get_text_config()
    scale = getattr(text, "logit_scale", None) or getattr(text, "lm_head_multiplier", None) or 1.0
    divisor = getattr(text, "logits_scaling", None) or 1.0
    softcap = getattr(text, "final_logit_softcapping", None) or getattr(text, "logits_soft_cap", None)
    return LMHead(model.get_output_embeddings(), float(scale / divisor), softcap)


def target_loss(
    hidden_NH: Tensor, targets_N: Tensor, head: LMHead, chunk: int, weight: float | None
) -> tuple[Tensor, Tensor | None]:
    """Return the sum of the losses (nats, fp32 scalar), and the gradient of weight x sum at `hidden_NH`.

    The gradient is None if `weight` is None. At most `chunk` targets are computed at a time, in parts of about equal
    size: a matmul of one or two rows rounds more.
    """
    total = torch.zeros((), dtype=torch.float32, device=hidden_NH.device)
    grad_NH = None if weight is None else torch.empty_like(hidden_NH)
    chunk_loss = _blockwise_loss if type(head.linear) in (nn.Linear, LowBitLinear) else _autograd_loss
    even = math.ceil(len(targets_N) / max(1, math.ceil(len(targets_N) / chunk)))
    for start in range(0, len(targets_N), max(1, even)):
        part = slice(start, start + even)
        loss, grad = chunk_loss(hidden_NH[part].detach(), targets_N[part], head, weight)
        total += loss
        if grad_NH is not None and grad is not None:
            grad_NH[part] = grad
    return total, grad_NH


def _blockwise_loss(
    hidden_NH: Tensor, targets_N: Tensor, head: LMHead, weight: float | None
) -> tuple[Tensor, Tensor | None]:
    """Compute the loss in one pass over blocks of the vocabulary, like flash attention over keys.

    Source: Dao 2022, arXiv 2205.14135. The head's expected row under the softmax is accumulated relative to the largest
    logit so far, and scaled down when a larger logit comes. The gradient is the expected row minus the target's row.
    """
    greatest_N = hidden_NH.new_full((len(hidden_NH),), float("-inf"), dtype=torch.float32)
    sum_N, picked_N = torch.zeros_like(greatest_N), torch.zeros_like(greatest_N)
    expected_NH = None if weight is None else torch.zeros_like(hidden_NH, dtype=torch.float32)
    for rows, head_BH in weight_blocks([head.linear.weight.detach()], hidden_NH.dtype, whole=False):
        logits_NB = head.logits_from_matmul(hidden_NH @ head_BH.t(), rows)
        at_N1 = targets_N[:, None] - rows.start
        here_N = ((at_N1 >= 0) & (at_N1 < len(head_BH)))[:, 0]
        picked_N = torch.where(here_N, logits_NB.gather(1, at_N1.clamp(0, len(head_BH) - 1))[:, 0], picked_N)
        top_N = torch.maximum(greatest_N, logits_NB.amax(1))
        shrink_N, greatest_N = (greatest_N - top_N).exp_(), top_N
        slope_NB = head.softcap_derivative(logits_NB)
        shares_NB = logits_NB.sub_(top_N[:, None]).exp_()
        sum_N = sum_N.mul_(shrink_N).add_(shares_NB.sum(1))
        if expected_NH is not None:
            shares_NB = shares_NB if slope_NB is None else shares_NB.mul_(slope_NB)
            _add_product_(expected_NH.mul_(shrink_N[:, None]), shares_NB.to(hidden_NH.dtype), head_BH)
    loss = (greatest_N + sum_N.log() - picked_N).sum()
    if expected_NH is None or weight is None:
        return loss, None
    slope_N = head.softcap_derivative(picked_N)
    wanted_NH = head.linear.weight.detach()[targets_N].float()
    wanted_NH = wanted_NH if slope_N is None else wanted_NH.mul_(slope_N[:, None])
    return loss, expected_NH.div_(sum_N[:, None]).sub_(wanted_NH).mul_(head.scale * weight)


def _add_product_(sum_NH: Tensor, a_NB: Tensor, b_BH: Tensor) -> None:
    """Add a_NB @ b_BH to `sum_NH`, which is float32 whatever the dtype of the factors."""
    if a_NB.dtype == sum_NH.dtype:
        sum_NH.addmm_(a_NB, b_BH)
    else:
        sum_NH += a_NB @ b_BH


def _autograd_loss(
    hidden_NH: Tensor, targets_N: Tensor, head: LMHead, weight: float | None
) -> tuple[Tensor, Tensor | None]:
    """Compute the loss by autograd, through a head that is not a plain linear layer."""
    hidden_NH.requires_grad_(weight is not None)
    with torch.set_grad_enabled(weight is not None):
        loss = F.cross_entropy(head(hidden_NH).float(), targets_N, reduction="sum")
    if weight is None:
        return loss, None
    return loss.detach(), torch.autograd.grad(loss, hidden_NH, torch.full_like(loss, weight))[0]
