"""A whole dense decoder over packed tokens: the shared prefix once, forward, loss, backward; no autograd in between.

Letters: T rows, H hidden, N targets.
"""

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lorafit.data.batch import MicroBatch
from lorafit.engines.torch.device import Device
from lorafit.engines.torch.loss import Head, target_loss
from lorafit.engines.torch.model import Recompute
from lorafit.engines.torch.packed.layer import PackedLayer, Rows, Saved, looks_like_llama, norm_of
from lorafit.messages import _
from lorafit.plan.plan import Plan


class PackedDecoder:
    """Made from a model of transformers whose linear layers already carry their LoRA; weights become fused views."""

    def __init__(self, decoder: Any, head: Head, chunk: int, recompute: Recompute) -> None:
        self.embed, self.rotary, self.head, self.chunk = decoder.embed_tokens, decoder.rotary_emb, head, chunk
        self.layers = [PackedLayer(layer) for layer in decoder.layers]
        self.norm = norm_of(decoder.norm)
        self.recompute = recompute

    def begin(self) -> None:
        """Start a step: all gradients are zero."""
        for layer in self.layers:
            for linear in layer.linears:
                linear.begin()

    @torch.no_grad()
    def forward_backward(self, micro: MicroBatch, weight: float) -> Tensor:
        """The sum of the losses; gradients of weight x sum are added to the parameters'."""
        ids, rows, before, targets = self._rows(micro)
        x = self.embed(ids)
        saved: list[Saved | Tensor] = []
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            y, kept = layer.forward(x, rows, before if index == last else None)
            saved.append(x if index < self.recompute.count else kept)
            x = y
        h, inverse = self.norm.forward(x)
        loss, grad = target_loss(h, targets, self.head, self.chunk, weight)
        assert grad is not None
        grad_x: Tensor | None = self.norm.backward(grad, x, inverse)
        del h, x, y, kept
        for index in range(last, -1, -1):
            layer, state, only = self.layers[index], saved.pop(), before if index == last else None
            if isinstance(state, Tensor):
                state = layer.forward(state, rows, only)[1]
            assert grad_x is not None
            grad_x = layer.backward(grad_x, state, rows, only, to_input=index > 0)
        return loss

    def _rows(self, micro: MicroBatch) -> tuple[Tensor, Rows, Tensor, Tensor]:
        """Token ids of the rows, their geometry, the row before each target, and the targets."""
        prefix = shared_prefix(micro)
        ends = micro.segments.tolist()
        taken = [np.arange(0, prefix), *(np.arange(a + prefix, b) for a, b in itertools.pairwise(ends))]
        order = np.concatenate(taken)
        lengths = [len(part) for part in taken[1:]]
        begins = (prefix + np.cumsum([0, *lengths])).tolist()
        own = list(itertools.pairwise(begins))
        ids = torch.from_numpy(micro.input_ids[order].astype(np.int64))
        positions = torch.from_numpy(micro.position_ids[order].astype(np.int64))[None]
        cos, sin = self.rotary(self.embed.weight[:1], positions)
        half = cos.shape[-1] // 2
        places = np.flatnonzero(micro.target_mask[order])
        rows = Rows(prefix, own, cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous())
        return ids, rows, torch.from_numpy(places - 1), ids[places]


def unfit(decoder: Any, head: Head, plan: Plan, device: Device) -> str | None:
    """Why this cannot be computed here, in words; None when it can. Whether the numbers agree is checked at load."""
    parts = all(hasattr(decoder, name) for name in ("layers", "norm", "rotary_emb", "embed_tokens"))
    if not (parts and all(looks_like_llama(layer) for layer in decoder.layers) and type(head.linear) is nn.Linear):
        return _("the fast path knows Llama's shape, and this model differs from it")
    if getattr(decoder.config, "sliding_window", None) is not None:  # longer than the samples that are compared at load
        return _("the fast path lets every token see the whole sample before it")
    if plan.lora_dropout > 0:
        return _("the fast path has no dropout")
    if plan.precision != "fp32" or plan.quantization != "none":
        return _("the fast path computes in float32, with weights that are not quantised")
    return None if device.fast_path else _("the fast path has not been tried on {device}").format(device=device.name)


def shared_prefix(micro: MicroBatch) -> int:
    """How many tokens all samples begin with, before the first that predicts a target; 0 where one is alone."""
    begins, ends = micro.segments[:-1], micro.segments[1:]
    if len(begins) < 2:
        return 0
    first = micro.input_ids[begins[0] : ends[0]]
    length = len(first)
    for begin, end in zip(begins, ends, strict=True):
        targets = np.flatnonzero(micro.target_mask[begin:end])
        length = min(length, int(targets[0]) - 1 if len(targets) else end - begin - 1)
        differs = np.flatnonzero(micro.input_ids[begin : begin + length] != first[:length])
        length = int(differs[0]) if len(differs) else length
    return max(length, 0)
