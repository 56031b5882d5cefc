"""Does this device compute rightly, and does this model pack? Two checks before anything is spent."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from lorafit.data.batch import MicroBatch, Sample, pack
from lorafit.engines.torch.attention import attention, own_attention
from lorafit.engines.torch.device import DEVICES, get_device, translated
from lorafit.engines.torch.loss import Head
from lorafit.errors import HardwareError
from lorafit.messages import _

# Largest difference by norm that rounding explains. A wrong kernel is off by the whole.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}
SEGMENTS = (5, 9, 3)


def difference(found: Tensor, wanted: Tensor) -> float:
    """Distance by norm, relative to `wanted`."""
    found, wanted = found.detach().float().cpu(), wanted.detach().float().cpu()
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))


def self_test(name: str, dtype: torch.dtype = torch.float32) -> None:
    """A matrix product, causal attention and a gradient on `name` against the CPU in fp32. Raises HardwareError."""
    device = get_device(name)
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(256, 256, generator=generator) for _i in range(2))
    with translated(DEVICES[name]):
        wanted = _self_test_sums(x, w)
        found = _self_test_sums(x.to(name, dtype), w.to(name, dtype))
    for part, a, b in zip(("matmul", "causal attention", "gradient"), found, wanted, strict=True):
        if not (off := difference(a, b)) <= TOLERANCE[dtype]:
            raise HardwareError(
                _("The device `{name}` computes wrongly: its self-test failed.").format(name=device.name),
                where=part,
                found=_("off by {off:.1%} of the right result (torch {version})").format(
                    off=off, version=torch.__version__
                ),
                fix=_("Update PyTorch and the system, or train with --device cpu."),
            )


def _self_test_sums(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    w = w.detach().requires_grad_()
    product = x @ w
    heads = product.view(1, 256, 4, 64).transpose(1, 2)
    attended = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True, scale=0.01)
    (gradient,) = torch.autograd.grad(attended, w, torch.full(attended.shape, 1e-2, dtype=x.dtype, device=x.device))
    return product, attended, gradient


def tiny_micro_batch(model: PreTrainedModel) -> MicroBatch:
    """Three tiny samples that begin alike, with targets at their ends."""
    rng, vocab = np.random.default_rng(0), model.config.get_text_config().vocab_size
    samples = []
    for length in SEGMENTS:
        ids = rng.integers(0, vocab, length + 2).astype(np.int32)
        ids[:2] = 0
        samples.append(Sample(ids, np.arange(length + 2) >= length // 2 + 2))
    return pack(samples, range(len(samples)), range(len(samples)))


def packing_error(model: PreTrainedModel, head: Head, parameters: Sequence[Tensor], device: str) -> tuple[float, float]:
    """How far packed differs from one by one, in (logits, gradients), by norm, on three tiny segments.

    One by one is transformers' own forward with its own attention and head, so this also checks our head.
    """
    ids = np.random.default_rng(0).integers(0, model.config.get_text_config().vocab_size, sum(SEGMENTS))
    ids_1T = torch.from_numpy(ids).to(device)[None]
    ends = torch.tensor([0, *np.cumsum(SEGMENTS)], dtype=torch.int32)
    position_ids = torch.cat([torch.arange(n) for n in SEGMENTS]).to(device)[None]
    hidden = model.get_decoder()(
        input_ids=ids_1T, position_ids=position_ids, use_cache=False, cu_seq_lens_q=ends
    ).last_hidden_state
    packed = head(hidden[0])
    seed = torch.linspace(-1, 1, packed.numel(), device=device).view_as(packed).to(packed.dtype)
    packed_grads = torch.autograd.grad(packed, list(parameters), seed)
    with attention(model, own_attention(model)):  # around the backward too, which may recompute
        plain = torch.cat([model(input_ids=part, use_cache=False).logits[0] for part in ids_1T.split(SEGMENTS, 1)])
        plain_grads = torch.autograd.grad(plain, list(parameters), seed)
    flat = [torch.cat([g.flatten().float() for g in grads]) for grads in (packed_grads, plain_grads)]
    return difference(packed, plain), difference(flat[0], flat[1])
