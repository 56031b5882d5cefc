"""Sampling of the next token with temperature and top-p, in numpy, the same for every engine."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lorafit.errors import EngineError
from lorafit.messages import _


@dataclass(frozen=True)
class Sampling:
    """Sampling settings. `temperature` 0 is greedy; `top_p` keeps the most likely tokens up to that probability.

    A token of `stop_ids` ends the answer. `max_tokens` limits prompt and answer together: the model has no more positions.
    """

    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 512
    seed: int = 42
    stop_ids: frozenset[int] = field(default_factory=frozenset)
    max_tokens: int | None = None

    def new_tokens(self, prompt_tokens: int) -> int:
        """Return the length that the answer to a prompt of `prompt_tokens` must not exceed."""
        room = self.max_new_tokens if self.max_tokens is None else self.max_tokens - prompt_tokens
        return max(min(self.max_new_tokens, room), 0)


def sample_token(logits_V: NDArray[np.float32], sampling: Sampling, rng: np.random.Generator) -> int:
    """Return one token ID sampled from `logits_V` [V]. Of equally likely tokens, the lower ID comes first.

    Raise EngineError if the logits are not numbers.
    """
    if not np.isfinite(logits_V.max()):  # nan if one is
        raise EngineError(
            _("The outputs of the model are not finite numbers, so it cannot answer."),
            fix=_("Use another precision, for example `--precision fp32`, or download the weight files again."),
        )
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    scaled = logits_V.astype(np.float64) / sampling.temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    kept = order[: int(np.searchsorted(np.cumsum(probs[order]), sampling.top_p)) + 1]
    return int(rng.choice(kept, p=probs[kept] / probs[kept].sum()))
