"""Causal attention of one sample to itself and to a shared prefix, without a full mask and without repeated keys.

Queries are computed in blocks. Each block is one matmul with its visible keys, and all query heads of a key head share
that matmul. Saved for the backward: the outputs and each row's log-sum-exp (Dao 2022, arXiv 2205.14135).

Letters: K key heads, G query heads a key head, n queries, L = shared + n keys, D head width, m queries of a block.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 64
FUTURE_MASK = torch.ones(BLOCK, BLOCK, dtype=torch.bool).triu_(1)  # hidden keys of each row in a block on the diagonal


def forward(q_KGnD: Tensor, keys_values_2KLD: Tensor, scale: float, out_KGnD: Tensor, lse_KGn: Tensor) -> None:
    """Write the output and the log-sum-exp into `out_KGnD` and `lse_KGn`: query i sees the keys up to shared + i."""
    k_KLD, v_KLD = keys_values_2KLD.chunk(2)
    heads, groups, n, width = q_KGnD.shape
    for rows, seen in _blocks(n, k_KLD.shape[1]):
        m = rows.stop - rows.start
        q = (q_KGnD[:, :, rows] * scale).reshape(heads, groups * m, width)
        scores = torch.bmm(q, k_KLD[:, :seen].transpose(1, 2))
        _mask_future_(scores, groups, m, float("-inf"))
        greatest = scores.amax(-1, keepdim=True)
        weights = scores.sub_(greatest).exp_()
        sums = weights.sum(-1, keepdim=True)
        mixed = torch.bmm(weights, v_KLD[:, :seen]).div_(sums)
        out_KGnD[:, :, rows] = mixed.view(heads, groups, m, width)
        lse_KGn[:, :, rows] = greatest.add_(sums.log_()).view(heads, groups, m)


def backward(
    grad_KGnD: Tensor,
    q_KGnD: Tensor,
    keys_values_2KLD: Tensor,
    saved: tuple[Tensor, Tensor],
    scale: float,
    grad_q_KGnD: Tensor,
) -> Tensor:
    """Write the gradient at q into `grad_q_KGnD`; return the gradient at keys and values [2K,L,D].

    `saved` is the log-sum-exp and grad . out, both [K,G,n]. The attention weights are recomputed block by block.
    """
    lse_KGn, dots_KGn = saved
    heads, groups, n, width = q_KGnD.shape
    grad_2KLD = torch.zeros_like(keys_values_2KLD)
    (k_KLD, v_KLD), (grad_k, grad_v) = keys_values_2KLD.chunk(2), grad_2KLD.chunk(2)
    for rows, seen in _blocks(n, k_KLD.shape[1]):
        m = rows.stop - rows.start
        q = (q_KGnD[:, :, rows] * scale).reshape(heads, groups * m, width)
        grad = grad_KGnD[:, :, rows].reshape(heads, groups * m, width)
        k, v = k_KLD[:, :seen], v_KLD[:, :seen]
        sums = lse_KGn[:, :, rows].reshape(heads, groups * m, 1)
        weights = torch.baddbmm(sums, q, k.transpose(1, 2), beta=-1).exp_()
        _mask_future_(weights, groups, m, 0.0)
        grad_v[:, :seen].baddbmm_(weights.transpose(1, 2), grad)
        dots = dots_KGn[:, :, rows].reshape(heads, groups * m, 1)
        grad_scores = torch.baddbmm(dots, grad, v.transpose(1, 2), beta=-1).mul_(weights)
        grad_q_KGnD[:, :, rows] = torch.bmm(grad_scores, k).mul_(scale).view(heads, groups, m, width)
        grad_k[:, :seen].baddbmm_(grad_scores.transpose(1, 2), q)
    return grad_2KLD


def _blocks(n: int, keys: int) -> Iterator[tuple[slice, int]]:
    """Yield slices of queries, each with the number of keys that its last query sees."""
    for first in range(0, n, BLOCK):
        last = min(first + BLOCK, n)
        yield slice(first, last), keys - n + last


def _mask_future_(scores: Tensor, groups: int, m: int, value: float) -> None:
    """Set the entries above the diagonal of a block's own square (its last m columns) to `value`."""
    square = scores.view(len(scores), groups, m, -1)[..., -m:]
    square.masked_fill_(FUTURE_MASK[:m, :m].to(scores.device), value)
