"""What does a prediction cost? Cross-entropy at target positions only, in chunks, with its gradient made at once.

The head is frozen, so the loss needs only the gradient at the hidden states: it is taken chunk by chunk in the
forward pass and full logits [T, V] never exist. Letters: T tokens, N targets, H hidden, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Head:
    """Hidden states to logits, as the model does it: the linear layer, then scaling and soft-cap where it has them."""

    linear: nn.Module
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        logits_NV: Tensor = self.linear(hidden_NH)
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.softcap is not None:
            logits_NV = torch.tanh(logits_NV / self.softcap) * self.softcap
        return logits_NV


def head_of(model: PreTrainedModel) -> Head:
    """The head of `model`. Cohere and Falcon-H1 multiply logits, Granite divides them, Gemma 2 and RecurrentGemma cap."""
    text = model.config.get_text_config()
    scale = getattr(text, "logit_scale", None) or getattr(text, "lm_head_multiplier", None) or 1.0
    divisor = getattr(text, "logits_scaling", None) or 1.0
    softcap = getattr(text, "final_logit_softcapping", None) or getattr(text, "logits_soft_cap", None)
    return Head(model.get_output_embeddings(), float(scale / divisor), softcap)


def target_loss(
    hidden_NH: Tensor, targets_N: Tensor, head: Callable[[Tensor], Tensor], chunk: int, weight: float | None
) -> tuple[Tensor, Tensor | None]:
    """Sum of the losses (nats, fp32 scalar) and, unless `weight` is None, the gradient of weight x sum at `hidden_NH`.

    `chunk` targets are worked on at a time.
    """
    total = torch.zeros((), dtype=torch.float32, device=hidden_NH.device)
    grad_NH = None if weight is None else torch.empty_like(hidden_NH)
    for start in range(0, len(targets_N), chunk):
        part = slice(start, start + chunk)
        hidden = hidden_NH[part].detach().requires_grad_(weight is not None)
        with torch.set_grad_enabled(weight is not None):
            loss = F.cross_entropy(head(hidden).float(), targets_N[part], reduction="sum")
        if grad_NH is not None and weight is not None:
            (grad_NH[part],) = torch.autograd.grad(loss, hidden, torch.full_like(loss, weight))
        total += loss.detach()
    return total, grad_NH
