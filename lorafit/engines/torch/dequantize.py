"""Base weights as a training on 4-bit weights saw them: quantized as in the training, then dequantized one by one."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from lorafit.engines.base import Setup
from lorafit.engines.torch.low_bit_linear import is_4bit, weight_blocks
from lorafit.engines.torch.model import load_base

Weights = Mapping[str, Callable[[], NDArray[np.float32]]]


def dequantized_weights(setup: Setup) -> Weights:
    """Return for each layer that the training of `setup` stored in 4 bits a function that returns its weight [O, I].

    The whole model is loaded in 4 bits on the CPU. Raises ModelError if it cannot be loaded.
    """
    model = load_base(replace(setup, device="cpu"))
    packed = {name: module.weight for name, module in model.named_modules() if is_4bit(getattr(module, "weight", None))}  # type: ignore[arg-type]
    return {name: _Weight(weight) for name, weight in packed.items()}


class _Weight:
    def __init__(self, packed: torch.Tensor) -> None:
        self.packed = packed

    def __call__(self) -> NDArray[np.float32]:
        parts = [part.numpy().copy() for _rows, part in weight_blocks([self.packed], torch.float32)]
        whole: NDArray[np.float32] = np.concatenate(parts)
        return whole
