"""The merged model that an export reads, and what it says about the file that it wrote."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class GgufSource:
    """A merged model in transformers' layout.

    `shapes` has the shape of each tensor by its name. `tensors` yields all of them in the same order, in float32, one at
    a time. `end_tokens` are the token IDs that end an answer, the trained one first. `add_bos` says whether each row of
    the training began with the bos token. `name` is the name of the base model: llama.cpp knows Phi-3 by it.
    """

    name: str
    config: Mapping[str, Any]
    tokenizer: Path
    chat_template: str | None
    end_tokens: Sequence[int]
    add_bos: bool
    shapes: Mapping[str, tuple[int, ...]]
    tensors: Callable[[], Iterator[tuple[str, Floats]]]


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
    """A written GGUF file. `notes` say where llama.cpp computes this model differently from transformers."""

    path: Path
    architecture: str
    quantize: str
    bytes: int
    tensors: tuple[GgufTensor, ...]
    notes: tuple[str, ...]
