"""A whole dense decoder over packed tokens: shared prefixes, forward, loss and backward, without autograd.

Letters: T rows, H hidden, N targets.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lorafit.data.micro_batch import MicroBatch
from lorafit.data.shared_prefix import repeated_prefixes
from lorafit.engines.torch.device import Device
from lorafit.engines.torch.lora import DropoutKeys
from lorafit.engines.torch.loss import LMHead, target_loss
from lorafit.engines.torch.low_bit_linear import LowBitLinear
from lorafit.engines.torch.model import ActivationCheckpointing
from lorafit.engines.torch.packed.layer import LayerActivations, PackedLayer, looks_like_llama, norm_of
from lorafit.engines.torch.packed.prefix import PrefixState
from lorafit.engines.torch.packed.rows import SharedKeysValues, Tokens, tokens_after_prefix
from lorafit.messages import _
from lorafit.planner.fast_path import generic_reason
from lorafit.planner.plan import Plan


class PackedDecoder:
    """A decoder built from a transformers model whose linear layers already carry LoRA; weights become fused views."""

    def __init__(
        self, decoder: Any, head: LMHead, chunk: int, recompute: ActivationCheckpointing, dropout: DropoutKeys
    ) -> None:
        self.embed, self.rotary, self.head, self.chunk = decoder.embed_tokens, decoder.rotary_emb, head, chunk
        self.layers = [PackedLayer(layer, dropout) for layer in decoder.layers]
        self.norm = norm_of(decoder.norm)
        self.recompute, self.dropout = recompute, dropout
        self.window: int | None = getattr(decoder.config, "sliding_window", None)

    @property
    def shares_prefixes(self) -> bool:
        """Return whether shared prefixes are computed once: not with dropout, whose masks differ between samples."""
        return self.dropout.p == 0

    def supports(self, micro_batches: Sequence[MicroBatch]) -> bool:
        """Return whether every token may see its whole sample up to itself: no sample is longer than the window."""
        longest = max((int(np.diff(micro.segments).max()) for micro in micro_batches), default=0)
        return self.window is None or longest <= self.window

    @torch.no_grad()
    def accumulate(self, step: int, micro_batches: Sequence[MicroBatch], weight: float) -> list[Tensor]:
        """Return one loss sum per micro-batch; set the parameters' .grad to the gradients of weight x their sum."""
        linears = [linear for layer in self.layers for linear in layer.linears]
        for linear in linears:
            linear.start_step()
        prefix = self._shared_prefixes(micro_batches)
        losses = [self.forward_backward(step, micro, weight, prefix) for micro in micro_batches]
        if prefix is not None:
            prefix.backward()
        for linear in linears:
            linear.finish_step()
        return losses

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Return one loss sum per micro-batch, without gradients."""
        prefix = self._shared_prefixes(micro_batches)
        losses = []
        for micro in micro_batches:
            tokens = self._tokens(micro, prefix)
            hidden, _saved = self._forward(tokens, prefix, keep=False)
            losses.append(target_loss(self.norm.forward(hidden)[0], tokens.targets_N, self.head, self.chunk, None)[0])
        return losses

    def forward_backward(self, step: int, micro: MicroBatch, weight: float, prefix: PrefixState | None) -> Tensor:
        """Return the loss sum of `micro`; add its gradients to those accumulated since the start of the step."""
        tokens = self._tokens(micro, prefix)
        with self.dropout.for_micro_batch(step, micro):
            hidden, saved = self._forward(tokens, prefix, keep=True)
            h, inverse = self.norm.forward(hidden)
            loss, grad = target_loss(h, tokens.targets_N, self.head, self.chunk, weight)
            assert grad is not None
            grad_hidden = self.norm.backward(grad, hidden, inverse)
            del h, hidden, grad
            self._backward(grad_hidden, saved, tokens, prefix)
        return loss

    def _shared_prefixes(self, micro_batches: Sequence[MicroBatch]) -> PrefixState | None:
        """Return the state of the prefixes that several samples share; None without one, or with dropout."""
        found = repeated_prefixes(micro_batches) if self.shares_prefixes else []
        return PrefixState(found, self.embed, self.rotary, self.layers, self.recompute.count) if found else None

    def _tokens(self, micro: MicroBatch, prefix: PrefixState | None) -> Tokens:
        return tokens_after_prefix(micro, prefix.spans if prefix else {}, self.rotary)

    def _forward(self, tokens: Tokens, prefix: PrefixState | None, keep: bool) -> tuple[Tensor, list[LayerActivations]]:
        """Return the last layer's output at the rows before targets, and each layer's activations if `keep`."""
        x, saved, last = self.embed(tokens.ids_T), [], len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            rows = tokens.rows.with_settings(tokens.before_N if index == last else None, _at(prefix, index))
            x, left = layer.forward(x, rows, recompute=index < self.recompute.count)
            if keep:
                saved.append(left)
        return x, saved

    def _backward(
        self, grad: Tensor, saved: list[LayerActivations], tokens: Tokens, prefix: PrefixState | None
    ) -> None:
        last = len(saved) - 1
        grad_x: Tensor | None = grad
        for index in range(last, -1, -1):
            rows = tokens.rows.with_settings(tokens.before_N if index == last else None, _at(prefix, index))
            assert grad_x is not None
            grad_x = self.layers[index].backward(grad_x, saved.pop(), rows, to_input=index > 0)


def _at(prefix: PrefixState | None, index: int) -> SharedKeysValues | None:
    return prefix.shared[index] if prefix else None


def why_unsupported(decoder: Any, head: LMHead, plan: Plan, device: Device) -> str | None:
    """Return why the fast path does not support this case, as a message; None if it does.

    Whether its results are right is checked when the model is loaded.
    """
    parts = all(hasattr(decoder, name) for name in ("layers", "norm", "rotary_emb", "embed_tokens"))
    known = parts and all(looks_like_llama(layer) for layer in decoder.layers)
    if not (known and type(head.linear) in (nn.Linear, LowBitLinear)):
        return generic_reason("architecture")
    if plan.shard:
        return _("the fast path needs the whole base model, but its weights are split across the processes")
    halves = plan.precision == "fp16" or (plan.precision == "bf16" and plan.quantization != "none")
    if halves or plan.quantization == "8bit":
        return generic_reason("precision")
    return None if device.fast_path else generic_reason("device", device.name)
