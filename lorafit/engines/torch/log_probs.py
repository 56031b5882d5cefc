"""Log-probabilities of the next token at chosen positions of a text, for the certificate of an export.

Letters: T tokens, P positions, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lorafit.engines.torch.attention import plain_attention, using_attention
from lorafit.engines.torch.device import translated
from lorafit.engines.torch.engine import TorchEngine
from lorafit.engines.torch.model_class import causal_lm_of


def round_weights(engine: TorchEngine, dtype: str) -> None:
    """Round the weights of the base model to `dtype`, for example "bfloat16"; the arithmetic stays as it is."""
    kind = getattr(torch, dtype)
    with torch.no_grad():
        for name, parameter in engine.model.named_parameters():
            if parameter.is_floating_point() and ".lora_" not in name:
                parameter.copy_(parameter.to(kind))


def log_probs(engine: TorchEngine, ids: Sequence[int], positions: Sequence[int]) -> NDArray[np.float32]:
    """Return log-probabilities [P,V] of the token after each of `positions` in `ids`, by a plain forward pass."""
    model = causal_lm_of(engine.model)
    attention = plain_attention(engine.model)
    with translated(engine.device), torch.inference_mode(), using_attention(engine.model, attention):
        found: Any = model(input_ids=torch.tensor([list(ids)], device=engine.model.device), use_cache=False)
        numbers: NDArray[np.float32] = found.logits[0, list(positions)].float().log_softmax(-1).cpu().numpy()
    return numbers
