"""How does one sample attend to itself and to a shared beginning, without a mask and without repeating keys?

Causal attention in blocks of queries: each block is one product with the keys it may see, and the grouped heads of one
key share that product. Kept for the backward: outputs and the log of each row's sum (Dao 2022, arXiv 2205.14135).

Letters: K key heads, G query heads a key head, n queries, L = prefix + n keys, D head width, m queries of a block.
"""

import torch
from torch import Tensor

BLOCK = 128


def forward(q_KGnD: Tensor, k_KLD: Tensor, v_KLD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Output [K,G,n,D] and log-sum-exp [K,G,n]: query i sees the keys up to prefix + i."""
    heads, groups, n, width = q_KGnD.shape
    prefix = k_KLD.shape[1] - n
    out, lse = torch.empty_like(q_KGnD), q_KGnD.new_empty(heads, groups, n)
    for first in range(0, n, BLOCK):
        rows = slice(first, min(first + BLOCK, n))
        m, seen = rows.stop - first, prefix + rows.stop
        q = q_KGnD[:, :, rows].reshape(heads, groups * m, width)
        scores = torch.bmm(q, k_KLD[:, :seen].transpose(1, 2)).mul_(scale)
        _hide_later_(scores.view(heads, groups, m, seen)[..., prefix + first :], float("-inf"))
        sums = torch.logsumexp(scores, -1, keepdim=True)
        weights = scores.sub_(sums).exp_()
        out[:, :, rows] = torch.bmm(weights, v_KLD[:, :seen]).view(heads, groups, m, width)
        lse[:, :, rows] = sums.view(heads, groups, m)
    return out, lse


def backward(
    grad_KGnD: Tensor, q_KGnD: Tensor, k_KLD: Tensor, v_KLD: Tensor, saved: tuple[Tensor, Tensor], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients at q, k and v; `saved` is what forward() gave. The weights are made again, block by block."""
    out, lse = saved
    heads, groups, n, width = q_KGnD.shape
    prefix = k_KLD.shape[1] - n
    grad_q, grad_k, grad_v = torch.empty_like(q_KGnD), torch.zeros_like(k_KLD), torch.zeros_like(v_KLD)
    dots = torch.linalg.vecdot(grad_KGnD, out)
    for first in range(0, n, BLOCK):
        rows = slice(first, min(first + BLOCK, n))
        m, seen = rows.stop - first, prefix + rows.stop
        q = q_KGnD[:, :, rows].reshape(heads, groups * m, width)
        grad = grad_KGnD[:, :, rows].reshape(heads, groups * m, width)
        k, v = k_KLD[:, :seen], v_KLD[:, :seen]
        sums = lse[:, :, rows].reshape(heads, groups * m, 1)
        weights = torch.baddbmm(sums, q, k.transpose(1, 2), beta=-1, alpha=scale).exp_()
        _hide_later_(weights.view(heads, groups, m, seen)[..., prefix + first :], 0.0)
        grad_v[:, :seen].baddbmm_(weights.transpose(1, 2), grad)
        dot = dots[:, :, rows].reshape(heads, groups * m, 1)
        grad_scores = torch.baddbmm(dot, grad, v.transpose(1, 2), beta=-1).mul_(weights)
        grad_q[:, :, rows] = torch.bmm(grad_scores, k).mul_(scale).view(heads, groups, m, width)
        grad_k[:, :seen].baddbmm_(grad_scores.transpose(1, 2), q, alpha=scale)
    return grad_q, grad_k, grad_v


def _hide_later_(corner: Tensor, value: float) -> None:
    """Set what lies above the diagonal of the last two axes."""
    m = corner.shape[-1]
    later = torch.ones(m, m, dtype=torch.bool, device=corner.device).triu_(1)
    corner.masked_fill_(later, value)
