"""The merged model that an export reads, and what it says about the file that it wrote."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorafit.exporters.certificate import Survival
from lorafit.exporters.products import Product

Floats = NDArray[np.float32]


class SourceTensor(NamedTuple):
    """A tensor by its name: the weights of the base in float32, and the adapter's delta, None if it has none."""

    name: str
    weight: Floats
    delta: Floats | None = None


@dataclass(frozen=True)
class GgufSource:
    """A merged model in transformers' layout.

    `shapes` has the shape of each tensor by its name. `tensors` yields all of them in the same order, one at a time,
    and keeps products of those with a delta in `layers`. `end_tokens` are the token IDs that end an answer, the trained one
    first. `add_bos` says whether each row of the training began with the bos token. `name` is the name of the base model: llama.cpp knows Phi-3 by it.
    """

    name: str
    config: Mapping[str, Any]
    tokenizer: Path
    chat_template: str | None
    end_tokens: Sequence[int]
    add_bos: bool
    shapes: Mapping[str, tuple[int, ...]]
    tensors: Callable[[], Iterator[SourceTensor]]
    layers: dict[str, Product] = field(default_factory=dict)


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file: its name there, its `source` in transformers' layout and its type, for example "Q8_0".

    `heads` is the number of attention heads whose rows were reordered, 0 if none were. `shift` was added to all values.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    type: str
    heads: int = 0
    shift: float = 0.0


@dataclass(frozen=True)
class GgufReport:
    """A written GGUF file.

    `survival` is what rounding left of the adapter, by the names of the tensors in the source. `notes` say where llama.cpp
    computes this model differently from transformers.
    """

    path: Path
    architecture: str
    quantize: str
    bytes: int
    tensors: tuple[GgufTensor, ...]
    notes: tuple[str, ...]
    survival: Survival
