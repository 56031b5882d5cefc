"""A model as mlx_lm loads it, which measures an export: log-probabilities and greedy answers, on the CPU.

The weights are those of the files, and the arithmetic is float32. Letters: T tokens, P positions, V vocabulary.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_map
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load
from numpy.typing import NDArray
from transformers import AutoConfig

from lorafit.engines.mlx import blas, device
from lorafit.engines.mlx.load import LoadedBase
from lorafit.engines.mlx.matrix import MAX_PACKED_TOKENS, matrix_of
from lorafit.engines.mlx.model_errors import CODE_ERRORS, error_text, other_way
from lorafit.engines.mlx.self_check import ignored_boundary
from lorafit.errors import EngineError
from lorafit.messages import _


class MLXModel:
    """The model in `folder`, with the adapter of mlx-lm in the folder `adapter`. Use it as a context manager.

    Raises EngineError if mlx_lm cannot load it.
    """

    def __init__(self, folder: Path, adapter: Path | None = None, trust_remote_code: bool = False) -> None:
        device.use_device("cpu", "fp32")
        path, settings = None if adapter is None else str(adapter), {"trust_remote_code": trust_remote_code}
        try:
            model, tokenizer = load(str(folder), tokenizer_config=settings, adapter_path=path, lazy=True)[:2]
        except CODE_ERRORS as error:
            raise EngineError(_("mlx_lm cannot load this model."), found=error_text(error), fix=other_way()) from error
        self.model: Any = model
        self.tokenizer: Any = tokenizer
        self.model.update(tree_map(_widened, self.model.parameters()))
        _with_fast_products(self.model)

    def __enter__(self) -> "MLXModel":
        return self

    def __exit__(self, *_error: object) -> None:
        del self.model
        mx.clear_cache()

    def log_probs(self, ids: Sequence[int], positions: Sequence[int]) -> NDArray[np.float32]:
        """Return log-probabilities [P,V] of the token after each of `positions` in `ids`."""
        with _translated():
            logits = self.model(mx.array([list(ids)]))[0][mx.array(list(positions))].astype(mx.float32)
            return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))

    def generate(self, prompts: Sequence[Sequence[int]], limit: int, stops: frozenset[int]) -> list[list[int]]:
        """Return the greedy answers, each of at most `limit` tokens, with the stop token that ended it if one did."""
        with _translated():
            return [self._answer(prompt, limit, stops) for prompt in prompts]

    def _answer(self, prompt: Sequence[int], limit: int, stops: frozenset[int]) -> list[int]:
        cache, answer = make_prompt_cache(self.model), list[int]()
        ids = list(prompt)
        while len(answer) < limit and not stops & {*answer[-1:]}:
            ids = [int(self.model(mx.array([ids]), cache=cache)[0, -1].argmax())]
            answer += ids
        return answer

    def ignored_boundary(self, folder: Path, trust_remote_code: bool = False) -> int | None:
        """Return the shortest window or chunk in config.json, in tokens, that mlx_lm ignores; None: it ignores none."""
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
        text = self.model.language_model if "language_model" in self.model else self.model
        with _translated():
            return ignored_boundary(LoadedBase(text, "", config.get_text_config()))

    def ends(self) -> set[int]:
        """Return the tokens at which mlx_lm ends an answer."""
        return {int(token) for token in self.tokenizer.eos_token_ids}

    def tokenize(self, text: str) -> list[int]:
        """Return the token IDs of `text`, in which special tokens are read as such. No bos is added."""
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return found


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn exceptions of MLX, and of mlx_lm's model code, into EngineError."""
    try:
        with device.translated():
            yield
    except CODE_ERRORS as error:
        what = _("mlx_lm cannot compute this model.")
        raise EngineError(what, found=error_text(error), fix=other_way()) from error


class MeasuredLinear(nn.Linear):
    """A linear layer for many tokens on a CPU."""

    def __call__(self, x: mx.array) -> mx.array:
        return _product(self, x)


class MeasuredQuantizedLinear(nn.QuantizedLinear):
    """A quantized linear layer for many tokens on a CPU."""

    def __call__(self, x: mx.array) -> mx.array:
        return _product(self, x)


class MeasuredEmbedding(nn.Embedding):
    """An embedding that may be the head too."""

    def as_linear(self, x: mx.array) -> mx.array:
        """Return the logits."""
        return _product(self, x)


class MeasuredQuantizedEmbedding(nn.QuantizedEmbedding):
    """A quantized embedding that may be the head too."""

    def as_linear(self, x: mx.array) -> mx.array:
        """Return the logits."""
        return _product(self, x)


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: MeasuredLinear,
    nn.QuantizedLinear: MeasuredQuantizedLinear,
    nn.Embedding: MeasuredEmbedding,
    nn.QuantizedEmbedding: MeasuredQuantizedEmbedding,
}


def _with_fast_products(model: nn.Module) -> None:
    """Change the layers whose products MLX computes slowly on a CPU: quantized ones, and all of them without a fast BLAS."""
    for module in model.modules():
        module.__class__ = KINDS.get(type(module), type(module))


def _product(module: nn.Module, x: mx.array) -> mx.array:
    """Return x W^T + b, with W unpacked for many tokens; numpy, which has a fast BLAS, multiplies where MLX has none."""
    matrix, rows = matrix_of(module), x.reshape(-1, x.shape[-1])
    if not blas.is_slow() or (matrix.scales is not None and len(rows) <= MAX_PACKED_TOKENS):
        return matrix(rows).reshape(*x.shape[:-1], -1)
    weight = matrix.weight if matrix.scales is None else matrix.rows(mx.arange(matrix.outputs))
    found = mx.array(np.array(rows, copy=False) @ np.array(weight, copy=False).T)
    return (found if matrix.bias is None else found + matrix.bias).reshape(*x.shape[:-1], -1)


def _widened(array: mx.array) -> mx.array:
    return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array
