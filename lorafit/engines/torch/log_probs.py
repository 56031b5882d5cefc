"""Log-probabilities of the next token at chosen positions of a text, and products of layers, for the certificate of an
export.

Letters: T tokens, P positions, V vocabulary, I inputs, O outputs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lorafit.engines.torch.attention import plain_attention, using_attention
from lorafit.engines.torch.device import translated
from lorafit.engines.torch.engine import TorchEngine
from lorafit.engines.torch.low_bit_linear import weight_blocks
from lorafit.engines.torch.model_class import causal_lm_of


def round_weights(engine: TorchEngine, dtype: str) -> None:
    """Round the weights of the base model to `dtype`, for example "bfloat16"; the arithmetic stays as it is."""
    kind = getattr(torch, dtype)
    with torch.no_grad():
        for name, parameter in engine.model.named_parameters():
            if parameter.is_floating_point() and ".lora_" not in name:
                parameter.copy_(parameter.to(kind))


def layer_products(
    engine: TorchEngine, vector: Callable[[int], NDArray[np.float32]]
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Return W x [O] and delta x [O] in float32 of each layer with an adapter, where x is `vector` of its inputs I."""
    found = {}
    with translated(engine.device), torch.inference_mode():
        for module, layer in engine.layers.items():
            x_I = torch.from_numpy(vector(layer.lora_A.shape[1])).to(layer.lora_A.device)
            parts = [part @ x_I for _rows, part in weight_blocks([layer.base.weight], torch.float32)]
            delta_O = layer.scale * (layer.lora_B @ (layer.lora_A @ x_I))
            found[module] = (torch.cat(parts).cpu().numpy(), delta_O.cpu().numpy())
    return found


def log_probs(engine: TorchEngine, ids: Sequence[int], positions: Sequence[int]) -> NDArray[np.float32]:
    """Return log-probabilities [P,V] of the token after each of `positions` in `ids`, by a plain forward pass."""
    model = causal_lm_of(engine.model)
    attention = plain_attention(engine.model)
    with translated(engine.device), torch.inference_mode(), using_attention(engine.model, attention):
        found: Any = model(input_ids=torch.tensor([list(ids)], device=engine.model.device), use_cache=False)
        numbers: NDArray[np.float32] = found.logits[0, list(positions)].float().log_softmax(-1).cpu().numpy()
    return numbers
