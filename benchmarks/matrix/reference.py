"""What transformers itself computes with an adapter: plain LoRA by hooks and autograd, one sample at a time, no cache.

The class is the one that config.json names, as a user of the folder loads it. Letters: T tokens, V vocabulary.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from support.engine_runs import Arrays
from support.model_zoo.folder import text_logits
from torch import Tensor, nn

from lorafit.data.micro_batch import Sample

TIE = 1e-4  # two logits whose distance is a smaller part of their spread are equally likely


class UnknownModules(Exception):
    """An adapter names modules that the model of transformers does not have."""


def load_model(folder: Path) -> Any:
    """Load the model in `folder` by the class that its config.json names, in float32 with the plainest attention."""
    (name,) = json.loads((folder / "config.json").read_text("utf-8"))["architectures"]
    for attention in ("eager", "sdpa"):
        try:
            model = getattr(transformers, name).from_pretrained(
                folder, dtype=torch.float32, attn_implementation=attention, experts_implementation="eager"
            )
            return model.eval().requires_grad_(False)
        except ValueError:  # this model has only the other one
            if attention == "sdpa":
                raise
    raise AssertionError


class PlainLora:
    """The adapter in `folder` on `model`: y + scale x A^T B^T, added by hooks. Raises UnknownModules."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
        self.weights = {name: tensor.float().requires_grad_() for name, tensor in tensors.items()}
        self.scale = config["lora_alpha"] / config["r"]
        names = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in tensors}
        known = dict(model.named_modules())
        if unknown := sorted(names - known.keys()):
            raise UnknownModules(f"{len(unknown)} of {len(names)}, e.g. {unknown[0]}")
        self.modules = {name: known[name] for name in names}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, the model computes with the adapter."""
        handles = [module.register_forward_hook(self._hook(name)) for name, module in self.modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        a, b = (self.weights[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")

        def add(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + self.scale * F.linear(F.linear(inputs[0], a), b)

        return add


def loss_and_gradients(model: Any, lora: PlainLora, samples: Sequence[Sample]) -> tuple[float, Arrays]:
    """Return the mean loss over all targets of `samples`, and its gradients by the names in the adapter's file."""
    total, loss_sum = sum(sample.num_targets for sample in samples), 0.0
    with lora.attached():
        for sample in samples:
            ids = torch.from_numpy(sample.input_ids.astype(np.int64))
            labels = torch.where(torch.from_numpy(sample.target_mask), ids, -100)
            loss = F.cross_entropy(text_logits(model, ids)[:-1], labels[1:], reduction="sum")
            (loss / total).backward()
            loss_sum += loss.item()
    return loss_sum / total, {
        name: np.zeros(weight.shape, np.float32) if weight.grad is None else weight.grad.numpy()
        for name, weight in lora.weights.items()
    }


def first_difference(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> str | None:
    """Return where the tokens of `answer` leave the greedy way by full forward passes without a cache; None: nowhere."""
    ids = list(prompt)
    for place, token in enumerate(answer):
        with torch.no_grad():
            logits_V = text_logits(model, torch.tensor(ids))[-1]
        behind = float((logits_V.max() - logits_V[token]) / logits_V.std())
        if behind > TIE:
            return f"token {place + 1} is {behind:.2g} standard deviations behind the greedy one"
        ids.append(token)
    return None
