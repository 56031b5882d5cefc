"""Causal attention within each packed sample (segment), registered with transformers under two names.

`SEGMENT_ATTENTION` calls SDPA once per segment. `VARLEN_ATTENTION` calls one variable-length flash kernel for all segments. Neither builds
a mask over all tokens: in padding-free rows transformers' dense masks would cost T x T and be slower than padding.
Letters: T tokens, N query heads, D head width.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from lorafit.engines.torch.device import Device

SEGMENT_ATTENTION = "lorafit_segments"
VARLEN_ATTENTION = "lorafit_varlen"
# torch's varlen_attn takes `enable_gqa` from 2.12 on. The kernel of 2.11 groups heads without it.
ASKS_FOR_GROUPS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 12)


def supports_varlen(device: Device, dtype: torch.dtype) -> bool:
    """Return whether one kernel may attend to all segments: 16-bit floats on a device with flash attention.

    Whether the kernel computes correctly is checked when the model is loaded.
    """
    return dtype in (torch.float16, torch.bfloat16) and device.has_flash()


def segment_arguments(ends: Tensor, device: torch.device | str) -> dict[str, Tensor]:
    """Return the forward-pass arguments for the cumulative segment lengths `ends`, int32 [S+1].

    `cu_seq_lens_q` stays where `ends` is, and its values are read; `cu_seq_lens_k` is on `device`, for the kernel.
    """
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends.to(device)}


@torch.compiler.disable  # type: ignore[untyped-decorator] # segment lengths depend on the data
def varlen_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Compute segment_attention() with torch's variable-length flash attention: one kernel call per layer.

    Soft-capped logits are computed by segment_attention() itself.
    """
    if options.get("softcap") is not None:  # the kernel has no soft-cap
        capped: tuple[Tensor, None] = segment_attention(module, query, key, value, attention_mask, **options)
        return capped
    from torch.nn.attention.varlen import varlen_attn  # not in every torch version that lorafit supports

    q_TND, k_TND, v_TND = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    window, ends, longest = options.get("sliding_window"), options["cu_seq_lens_k"], max(_lengths(options))
    groups: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1]} if ASKS_FOR_GROUPS else {}
    out: Any = varlen_attn(
        q_TND,
        k_TND,
        v_TND,
        ends,
        ends,
        longest,
        longest,
        scale=options.get("scaling"),
        window_size=(-1 if window is None else window - 1, 0),  # visible tokens before each token, and after it
        **groups,
    )
    return out.unsqueeze(0), None


@torch.compiler.disable  # type: ignore[untyped-decorator] # segment lengths depend on the data
def segment_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Compute causal attention within each segment, by transformers' attention interface.

    query [1,N,T,D], key and value [1,heads,T,D] -> [1,T,N,D]. `cu_seq_lens_q` holds the cumulative segment lengths;
    `sliding_window`, `softcap` and `scaling` are honored.
    """
    lengths = _lengths(options)
    parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    scaling, window, softcap = options.get("scaling"), options.get("sliding_window"), options.get("softcap")
    outs = [_one_segment(q, k, v, scaling, window, softcap).transpose(1, 2) for q, k, v in parts]
    return torch.cat(outs, 1), None  # some models expect a contiguous output


def _lengths(options: dict[str, Any]) -> list[int]:
    ends: list[int] = options["cu_seq_lens_q"].tolist()
    return [b - a for a, b in itertools.pairwise(ends)]


def _one_segment(
    q: Tensor, k: Tensor, v: Tensor, scaling: float | None, window: int | None, softcap: float | None
) -> Tensor:
    length = q.shape[2]
    if softcap is None:
        mask = None if window is None or window >= length else _allowed(length, window, q.device)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(2, 3) * (q.shape[3] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~_allowed(length, window or length, q.device), float("-inf"))
    return torch.softmax(scores.float(), -1).to(q.dtype) @ v


def _allowed(length: int, window: int, device: torch.device) -> Tensor:
    """Return bool [length, length]: a row may see a column that is not later and less than `window` tokens away."""
    row = torch.arange(length, device=device)
    distance = row[:, None] - row[None, :]
    return (distance >= 0) & (distance < window)


def plain_attention(model: PreTrainedModel) -> str:
    """Return the name of the model's plain attention in transformers: "eager" or "sdpa".

    Eager is for models with soft-capped logits and for models without SDPA support, such as those with attention sinks.
    """
    text = model.config.get_text_config()
    capped = getattr(text, "attn_logit_softcapping", None)
    return "eager" if capped or not getattr(model, "_supports_sdpa", True) else "sdpa"


@contextmanager
def using_attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Run `model` with the attention implementation `name` inside the context."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


AttentionInterface.register(SEGMENT_ATTENTION, segment_attention)
AttentionInterface.register(VARLEN_ATTENTION, varlen_attention)
