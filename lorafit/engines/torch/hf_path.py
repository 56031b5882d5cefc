"""The generic path: trains any causal LM of transformers by its own forward and autograd, packed or sample by sample.

Letters: T tokens of a micro-batch, N its targets, H hidden.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorafit.data.micro_batch import MicroBatch
from lorafit.engines.torch.attention import segment_arguments
from lorafit.engines.torch.lora import DropoutKeys
from lorafit.engines.torch.loss import LMHead, target_loss
from lorafit.engines.torch.model_class import decoder_of


class GenericPath:
    """Loss and gradients by transformers' forward and autograd.

    `packs`: several samples share a forward pass. `chunk`: number of targets whose loss is computed at once.
    """

    def __init__(self, model: PreTrainedModel, head: LMHead, dropout: DropoutKeys, chunk: int) -> None:
        self.model, self.head, self.dropout, self.chunk = model, head, dropout, chunk
        self.packs = True

    def accumulate(self, step: int, micro_batches: Sequence[MicroBatch], weight: float) -> list[Tensor]:
        """Return the loss sums; add the gradients of weight x their sum to the parameters' .grad."""
        return [self.forward_backward(m, step, weight) for micro in micro_batches for m in micro.parts(self.packs)]

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Return the loss sums. The caller turns autograd off."""
        losses = []
        for micro in (m for packed in micro_batches for m in packed.parts(self.packs)):
            hidden_TH, before, targets = self.hidden(micro)
            losses.append(target_loss(hidden_TH.index_select(0, before), targets, self.head, self.chunk, None)[0])
        return losses

    def ready(self) -> AbstractContextManager[None]:
        """Return a context in which any code may call the model and its head."""
        return nullcontext()

    def forward_backward(self, micro: MicroBatch, step: int, weight: float) -> Tensor:
        """Return the loss sum of `micro`; add the gradients of weight x sum to the parameters' .grad."""
        with self.dropout.for_micro_batch(step, micro):
            hidden_TH, before, targets = self.hidden(micro)
            picked_NH = hidden_TH.detach().index_select(0, before)
            loss, grad_NH = target_loss(picked_NH, targets, self.head, self.chunk, weight)
            assert grad_NH is not None
            hidden_TH.backward(torch.zeros_like(hidden_TH).index_copy_(0, before, grad_NH))
        return loss

    def hidden(self, micro: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the last hidden states [T,H], the index [N] before each target, and the targets [N]."""
        device = self.model.device
        input_ids = torch.from_numpy(micro.input_ids.astype(np.int64))
        places = np.flatnonzero(micro.target_mask)
        options: dict[str, Any] = {"input_ids": input_ids.to(device)[None], "use_cache": False}
        if self.packs:
            options["position_ids"] = torch.from_numpy(micro.position_ids.astype(np.int64)).to(device)[None]
            options |= segment_arguments(torch.from_numpy(micro.segments), device)
        hidden: Tensor = decoder_of(self.model)(**options).last_hidden_state[0]
        return hidden, torch.from_numpy(places - 1).to(device), input_ids[places].to(device)
