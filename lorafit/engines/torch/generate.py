"""Token generation, from one prompt token by token or from several prompts in one batch.

A token costs one read of all weights, for one prompt or for eight.
Letters: P prompts, T tokens, V vocabulary.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorafit.engines.torch.attention import plain_attention, using_attention
from lorafit.engines.torch.device import Device, translated
from lorafit.engines.torch.model_class import causal_lm_of
from lorafit.sampling import Sampling, sample_token

PROMPTS_PER_BATCH = 8  # prompts in a batch
CACHE_NAMES = ("cache", "past_key_values", "cache_params", "state")  # in a model's forward and in its output


class CachedDecoder:
    """A model and its cache of the tokens that it has read, for P rows; computes the logits of the next tokens.

    The model makes its own cache in the first pass: some types accept no other.
    """

    def __init__(self, model: PreTrainedModel, device: Device) -> None:
        self.model, self.device, self.read = causal_lm_of(model), device, 0
        self.whole, self.cache = model, cast(Any, None)
        self.takes = _forward_parameters(self.model)
        # transformers 5.24 renamed `past_key_values` to `cache`.
        self.cache_name = next((name for name in CACHE_NAMES if name in self.takes), CACHE_NAMES[0])

    def logits(self, ids_PT: list[list[int]], **more: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return logits [P, V] after `ids_PT`, which follow the cached tokens; `more` goes to the model's forward."""
        with translated(self.device), torch.inference_mode(), using_attention(self.whole, plain_attention(self.whole)):
            ids = torch.tensor(ids_PT, device=self.model.device)
            if "position_ids" in self.takes and "position_ids" not in more:
                more["position_ids"] = torch.arange(self.read, self.read + ids.shape[1], device=ids.device)[None]
            if self.cache is not None:
                more[self.cache_name] = self.cache
            if "logits_to_keep" in self.takes:
                found = self.model(input_ids=ids, **more, use_cache=True, logits_to_keep=1)
            else:
                found = self.model(input_ids=ids, **more, use_cache=True)
            self.cache, self.read = _cache_of(found), self.read + ids.shape[1]
            numbers: np.ndarray[Any, np.dtype[np.float32]] = found.logits[:, -1].float().cpu().numpy()
        return numbers


def _cache_of(output: Any) -> Any:
    """Return the cache in a model's output, or None: RecurrentGemma keeps its state in its modules."""
    return next((found for name in CACHE_NAMES if (found := getattr(output, name, None)) is not None), None)


def stream_tokens(
    model: PreTrainedModel, device: Device, prompt_ids: Sequence[int], sampling: Sampling
) -> Iterator[int]:
    """Yield the token ids that continue a prompt, each as it is sampled, up to and without a stop id."""
    rng, reader, ids = np.random.default_rng(sampling.seed), CachedDecoder(model, device), list(prompt_ids)
    for _i in range(sampling.new_tokens(len(prompt_ids))):
        token = sample_token(reader.logits([ids])[0], sampling, rng)
        if token in sampling.stop_ids:
            return
        yield token
        ids = [token]


def generate_batches(
    model: PreTrainedModel, device: Device, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> Iterator[dict[int, list[int]]]:
    """Yield the continuations by prompt index; up to PROMPTS_PER_BATCH prompts of similar length form a batch.

    A model whose results would change with padding gets one prompt at a time.
    """
    places = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    if not _supports_left_padding(model):
        yield from ({place: list(stream_tokens(model, device, prompts[place], sampling))} for place in places)
        return
    for start in range(0, len(places), PROMPTS_PER_BATCH):
        yield _generate_batch(
            model,
            device,
            {place: list(prompts[place]) for place in places[start : start + PROMPTS_PER_BATCH]},
            sampling,
        )


def _forward_parameters(model: PreTrainedModel) -> set[str]:
    """Return the parameter names of the model's forward."""
    return set(inspect.signature(type(model).forward).parameters)


def _supports_left_padding(model: PreTrainedModel) -> bool:
    """Return whether a mask hides padding from the model.

    The model must have full or sliding attention only, no recurrent state that padding would change, and a forward that
    takes mask and positions. Its rotary angles must not depend on the longest text of a batch.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    plain = kinds <= {"full_attention", "sliding_attention"} and not getattr(model, "_is_stateful", False)
    turned = str(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None))
    by_length = any(kind in turned for kind in ("longrope", "dynamic"))
    return plain and not by_length and _forward_parameters(causal_lm_of(model)) >= {"attention_mask", "position_ids"}


def _generate_batch(
    model: PreTrainedModel, device: Device, prompts: dict[int, list[int]], sampling: Sampling
) -> dict[int, list[int]]:
    """Return the continuations of one batch by prompt index.

    Prompts are padded on the left, where no token attends. Finished prompts leave the batch.
    """
    reader, longest = CachedDecoder(model, device), max(map(len, prompts.values()))
    rngs = {place: np.random.default_rng(sampling.seed) for place in prompts}
    answers: dict[int, list[int]] = {place: [] for place in prompts}
    most = {place: sampling.new_tokens(len(ids)) for place, ids in prompts.items()}
    going, ids_PT = list(prompts), [[0] * (longest - len(ids)) + ids for ids in prompts.values()]
    seen = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts.values()]
    mask_PT = torch.tensor(seen, device=model.device)
    for made in range(max(most.values())):
        positions_PT = (mask_PT.cumsum(1) - 1).clamp_min(0)[:, -len(ids_PT[0]) :]
        logits_PV = reader.logits(ids_PT, attention_mask=mask_PT, position_ids=positions_PT)
        tokens = [
            sample_token(logits_V, sampling, rngs[place]) for place, logits_V in zip(going, logits_PV, strict=True)
        ]
        rows = [row for row, token in enumerate(tokens) if token not in sampling.stop_ids and made < most[going[row]]]
        if not rows:
            break
        if len(rows) < len(going):
            reader.cache.batch_select_indices(torch.tensor(rows, device=model.device))
            going, mask_PT = [going[row] for row in rows], mask_PT[rows]
        ids_PT = [[tokens[row]] for row in rows]
        for place, ids in zip(going, ids_PT, strict=True):
            answers[place] += ids
        mask_PT = torch.cat([mask_PT, mask_PT.new_ones(len(going), 1)], 1)
    return answers
