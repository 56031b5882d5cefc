"""Causal attention for one sample at a time, without stored attention weights.

The backward pass recomputes the weights, one block of queries at a time, so its memory grows with block x length only.
Each block skips the keys that come after its last query. Letters: N query heads, K key heads, G = N / K, S tokens of
a sample, L keys, D head width, M queries of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import mlx.core as mx

from lorafit.engines.mlx.arithmetic import softmax

CPU_BLOCK, GPU_BLOCK = 128, 512  # queries per block; small blocks waste less above the diagonal but need more launches


@dataclass(frozen=True)
class AttentionKind:
    """Attention settings of a layer: `window` of visible tokens (None: all), `softcap` on the scores (None: none)."""

    scale: float
    window: int | None = None
    softcap: float | None = None


@cache
def trained_attention(kind: AttentionKind) -> Any:
    """Return a function (q [1,N,S,D], k [1,K,S,D], v [1,K,S,D]) -> [1,N,S,D] with its own backward pass."""

    @mx.custom_function
    def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return attention(kind, q, k, v)

    @attend.vjp
    def backward(
        inputs: tuple[mx.array, mx.array, mx.array], grad: mx.array, out: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        return _backward(kind, inputs, grad, out)

    return attend


def attention(kind: AttentionKind, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """Return causal attention [1,N,S,D] of the last S tokens: q [1,N,S,D] over k, v [1,K,L,D], L >= S."""
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    if kind.softcap is None and not on_cpu:
        return _fused(kind, q, k, v)
    outs = []
    for rows, keys in _blocks(q.shape[2], k.shape[2], kind.window):
        q_part = _grouped(q[:, :, rows], k.shape[1])
        weights = _weights(kind, q_part, k[0, :, keys], _allowed(kind, q.shape[2], k.shape[2], rows, keys))[0]
        outs.append(_ungrouped(weights.astype(v.dtype) @ v[0, :, keys], q.shape[1]))
    return outs[0] if len(outs) == 1 else mx.concatenate(outs, axis=2)


def _fused(kind: AttentionKind, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """Compute attention with MLX's own fused kernel."""
    queries, length = q.shape[2], k.shape[2]
    mask: Any = "causal" if queries > 1 else None
    if kind.window is not None and length > kind.window:
        if queries == 1:
            k, v = k[:, :, -kind.window :], v[:, :, -kind.window :]
        else:
            mask = _allowed(kind, queries, length, slice(0, queries), slice(0, length))
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=kind.scale, mask=mask)


def _backward(
    kind: AttentionKind, inputs: tuple[mx.array, mx.array, mx.array], grad: mx.array, out: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    q, k, v = inputs
    heads, length = k.shape[1], k.shape[2]
    grad_q, grad_k, grad_v = [], mx.zeros(k.shape[1:], mx.float32), mx.zeros(v.shape[1:], mx.float32)
    for rows, keys in _blocks(q.shape[2], length, kind.window):
        q_part, g_part, o_part = (_grouped(t[:, :, rows], heads) for t in (q, grad, out))
        k_part, v_part = k[0, :, keys], v[0, :, keys]
        weights, slope = _weights(kind, q_part, k_part, _allowed(kind, q.shape[2], length, rows, keys))
        grad_weights = (g_part @ v_part.swapaxes(-1, -2)).astype(mx.float32)
        own = (g_part * o_part).sum(axis=-1, keepdims=True).astype(mx.float32)
        grad_scores = weights * (grad_weights - own) * kind.scale
        grad_scores = (grad_scores if slope is None else grad_scores * slope).astype(q.dtype)
        grad_q.append(_ungrouped(grad_scores @ k_part, q.shape[1]))
        around = [(0, 0), (keys.start, length - keys.stop), (0, 0)]
        grad_k = grad_k + mx.pad(grad_scores.swapaxes(-1, -2) @ q_part, around)
        grad_v = grad_v + mx.pad(weights.astype(q.dtype).swapaxes(-1, -2) @ g_part, around)
    dtype = q.dtype
    return mx.concatenate(grad_q, axis=2), grad_k[None].astype(dtype), grad_v[None].astype(dtype)


def _weights(kind: AttentionKind, q: mx.array, k: mx.array, allowed: mx.array) -> tuple[mx.array, mx.array | None]:
    """Return attention weights [K,GM,L] (fp32) of q [K,GM,D] over k [K,L,D], and the softcap's derivative or None."""
    scores, slope = ((q * kind.scale) @ k.swapaxes(-1, -2)).astype(mx.float32), None
    if kind.softcap is not None:
        bent = mx.tanh(scores / kind.softcap)
        scores, slope = bent * kind.softcap, 1 - bent * bent
    heads, rows, length = scores.shape
    by_row = scores.reshape(heads, -1, allowed.shape[0], length)
    return softmax(mx.where(allowed, by_row, -mx.inf)).reshape(heads, rows, length), slope


def _blocks(queries: int, length: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Yield pairs of slices: a block of queries, and the keys that these queries can see."""
    before = length - queries
    size = CPU_BLOCK if mx.default_device() == mx.Device(mx.cpu) else GPU_BLOCK
    for start in range(0, queries, size):
        end = min(start + size, queries)
        first = 0 if window is None else max(0, before + start - window + 1)
        yield slice(start, end), slice(first, before + end)


def _allowed(kind: AttentionKind, queries: int, length: int, rows: slice, keys: slice) -> mx.array:
    """Return bool [M,L]: True where the key is not later than the query and less than `window` tokens away."""
    row = mx.arange(rows.start, rows.stop)[:, None] + (length - queries)
    key = mx.arange(keys.start, keys.stop)[None]
    seen: mx.array = row >= key
    return seen if kind.window is None else seen & (row - key < kind.window)


def _grouped(x: mx.array, heads: int) -> mx.array:
    """Reshape [1,N,M,D] -> [K,GM,D]: query heads that share a key head become rows of one matmul."""
    return x.reshape(heads, -1, x.shape[-1])


def _ungrouped(x: mx.array, query_heads: int) -> mx.array:
    """Reshape [K,GM,D] -> [1,N,M,D]."""
    return x.reshape(1, query_heads, -1, x.shape[-1])
