"""Checks before training: whether the device computes correctly, and whether the model supports packing."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from lorafit.data.micro_batch import MicroBatch, Sample, pack
from lorafit.data.shared_prefix import MIN_PREFIX_TOKENS
from lorafit.engines.base import Setup, not_finite_error
from lorafit.engines.boundaries import small_boundaries
from lorafit.engines.torch.attention import (
    plain_attention,
    segment_arguments,
    segment_attention,
    using_attention,
    varlen_attention,
)
from lorafit.engines.torch.device import DEVICES, get_device, is_device_failure, translated
from lorafit.engines.torch.loss import LMHead
from lorafit.engines.torch.model_class import causal_lm_of, decoder_of
from lorafit.errors import HardwareError, ModelError
from lorafit.messages import _

# Largest relative difference by norm that rounding explains. A wrong kernel differs by about 1.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}
SEGMENTS = (5, 9, 3)
LONG_SEGMENTS, WINDOWS = (5, 300, 130), (None, 70)  # longer than a kernel's blocks
Gradients = tuple[Tensor | None, ...]  # None: no gradient reaches the parameter
CODE_ERRORS = (LookupError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError)  # of a model's code
SELF_TESTS = ("matmul", "causal attention in training", "causal attention in answers", "gradient")


def difference(found: Tensor, wanted: Tensor) -> float:
    """Return the distance of `found` from `wanted` by norm, relative to `wanted`."""
    return difference_of_all([found], [wanted])


def difference_of_all(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return difference() of all tensors end to end, pair by pair, since the gradients of an adapter are large."""
    off, whole = [], []
    for one, other in zip(found, wanted, strict=True):
        one, other = one.detach().float().cpu(), other.detach().float().cpu()
        off.append(float((one - other).norm()))
        whole.append(float(other.norm()))
    return math.hypot(*off) / max(math.hypot(*whole), 1e-30)


def self_test(name: str, dtype: torch.dtype = torch.float32) -> None:
    """Compare a matmul, causal attention and a gradient on device `name` with the CPU in fp32.

    Attention is tested with and without gradients, since generation and evaluation use other kernels than training. One
    such kernel of MPS attended to later tokens in bf16. Raises HardwareError if a result is wrong.
    """
    device = get_device(name)
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(256, 256, generator=generator) for _i in range(2))
    with translated(DEVICES[name]):
        wanted = _self_test_sums(x, w)
        found = _self_test_sums(x.to(name, dtype), w.to(name, dtype))
    for part, a, b in zip(SELF_TESTS, found, wanted, strict=True):
        if not (off := difference(a, b)) <= TOLERANCE[dtype]:
            raise HardwareError(
                _("Device `{name}` gives wrong results: its self-test failed.").format(name=device.name),
                where=part,
                found=_("relative error {off:.1%} (torch {version})").format(off=off, version=torch.__version__),
                fix=_("Update PyTorch and the system, or train with --device cpu."),
            )


def _self_test_sums(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    w = w.detach().requires_grad_()
    product = x @ w
    heads = product.view(1, 256, 4, 64).transpose(1, 2)
    attended = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True, scale=0.01)
    with torch.no_grad():
        answered = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True, scale=0.01)
    (gradient,) = torch.autograd.grad(attended, w, torch.full(attended.shape, 1e-2, dtype=x.dtype, device=x.device))
    return product, attended, answered, gradient


def tiny_micro_batch(model: PreTrainedModel) -> MicroBatch:
    """Return a micro-batch of three tiny samples with a common prefix and targets at their ends."""
    rng, vocab = np.random.default_rng(0), model.config.get_text_config().vocab_size
    samples = []
    for length in SEGMENTS:
        ids = rng.integers(0, vocab, length + MIN_PREFIX_TOKENS).astype(np.int32)
        ids[:MIN_PREFIX_TOKENS] = 0
        samples.append(Sample(ids, np.arange(length + MIN_PREFIX_TOKENS) > length // 2 + MIN_PREFIX_TOKENS))
    return pack(samples, range(len(samples)), range(len(samples)), [MIN_PREFIX_TOKENS] * len(samples))


@dataclass(frozen=True)
class PackingCheck:
    """How far a packed pass differs from single passes, by norm, and the parameters that no pass reaches.

    `error` is infinite if the model does not accept, or does not pass on, the arguments that packing needs. `unreached`
    has the places of the parameters without a gradient in single passes, as far as these work with small boundaries.
    """

    error: float
    unreached: list[int]

    @property
    def refusal(self) -> str:
        """The note for the user if the samples cannot be packed."""
        if not math.isfinite(self.error):
            return _("This model does not support packed samples: samples are computed one at a time.")
        text = _(
            "Packed samples give different results with this model (relative error {off:.1%}): "
            "samples are computed one at a time."
        )
        return text.format(off=self.error)


def check_packing(model: PreTrainedModel, head: LMHead, parameters: Sequence[Tensor], device: str) -> PackingCheck:
    """Compare a packed pass with single passes: see packing_error()."""
    unreached: list[int] = []
    with _small_boundaries(model):
        try:
            plain, plain_grads = _plain_pass(model, parameters, device)
            unreached = [place for place, gradient in enumerate(plain_grads) if gradient is None]
            packed, packed_grads = _packed_pass(model, head, parameters, device)
        except CODE_ERRORS as error:
            _raise_device_failure(error)
            return PackingCheck(math.inf, unreached)
    off = worst(difference(packed, plain), difference_of_all(*_zeros_for_none(packed_grads, plain_grads)))
    return PackingCheck(off, unreached)


def packing_error(
    model: PreTrainedModel, head: LMHead, parameters: Sequence[Tensor], device: str
) -> tuple[float, float]:
    """Return how far a packed pass differs from single passes in (logits, gradients), by norm; nan on overflow.

    The samples are three tiny segments, which cross every boundary of the model: windows, chunks, blocks and numbers of
    selected tokens are made smaller for the check. Single passes use transformers' own forward, attention and head, so
    this checks lorafit's head too. A weight without a part in the pass (an expert that gets no token) has a gradient of
    zero.
    """
    with _small_boundaries(model):
        packed, packed_grads = _packed_pass(model, head, parameters, device)
        plain, plain_grads = _plain_pass(model, parameters, device)
    return difference(packed, plain), difference_of_all(*_zeros_for_none(packed_grads, plain_grads))


def _raise_device_failure(error: Exception) -> None:
    """Raise `error` again unless it comes from a model's code."""
    if isinstance(error, RuntimeError) and is_device_failure(error):
        raise error


def _small_boundaries(model: PreTrainedModel) -> AbstractContextManager[None]:
    return small_boundaries([model.config.get_text_config(), *model.modules()])


def _packed_pass(
    model: PreTrainedModel, head: LMHead, parameters: Sequence[Tensor], device: str
) -> tuple[Tensor, Gradients]:
    """Return logits [T,V] of three samples in one pass, and the gradients of all parameters."""
    ends = torch.tensor([0, *np.cumsum(SEGMENTS)], dtype=torch.int32)
    position_ids = torch.cat([torch.arange(n) for n in SEGMENTS]).to(device)[None]
    ids_1T, arguments = _some_ids(model, sum(SEGMENTS), device), segment_arguments(ends, device)
    body = decoder_of(model)
    hidden = body(input_ids=ids_1T, position_ids=position_ids, use_cache=False, **arguments).last_hidden_state
    logits = head(hidden[0])
    return logits, _gradients(logits, parameters)


def _plain_pass(model: PreTrainedModel, parameters: Sequence[Tensor], device: str) -> tuple[Tensor, Gradients]:
    """Return logits [T,V] of the three samples in single passes of transformers, and the gradients of all parameters."""
    single, ids_1T = causal_lm_of(model), _some_ids(model, sum(SEGMENTS), device)
    with using_attention(model, plain_attention(model)):  # with the backward, which may recompute the forward
        logits = torch.cat([single(input_ids=part, use_cache=False).logits[0] for part in ids_1T.split(SEGMENTS, 1)])
        return logits, _gradients(logits, parameters)


def _zeros_for_none(found: Gradients, wanted: Gradients) -> tuple[list[Tensor], list[Tensor]]:
    """Return both lists with zeros in place of a gradient that only the other list has, without pairs of None."""
    pairs = [(one, other) for one, other in zip(found, wanted, strict=True) if one is not None or other is not None]
    zeros = [torch.zeros_like(one if one is not None else other) for one, other in pairs]  # type: ignore[arg-type]
    return (
        [zero if one is None else one for (one, _other), zero in zip(pairs, zeros, strict=True)],
        [zero if other is None else other for (_one, other), zero in zip(pairs, zeros, strict=True)],
    )


def varlen_attention_error(model: PreTrainedModel, dtype: torch.dtype, device: str) -> float:
    """Return the largest difference by norm, in outputs and gradients, between one kernel and segment by segment.

    Heads are as wide as the model's; attention is tested with and without a window. The kernel's errors are not caught.
    """
    text = model.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    ends = segment_arguments(torch.tensor([0, *np.cumsum(LONG_SEGMENTS)], dtype=torch.int32), device)
    generator, shape = torch.Generator().manual_seed(0), (1, 4, sum(LONG_SEGMENTS), width)
    q, k, v, grad = (torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for _i in range(4))
    inputs, errors = (q, k[:, :2], v[:, :2]), []
    for window in WINDOWS:
        one, each = (
            function(torch.nn.Module(), *inputs, None, sliding_window=window, **ends)[0]
            for function in (varlen_attention, segment_attention)
        )
        seed = grad.detach().transpose(1, 2)
        pairs = zip(torch.autograd.grad(one, (q, k, v), seed), torch.autograd.grad(each, (q, k, v), seed), strict=True)
        errors += [difference(one, each), *(difference(a, b) for a, b in pairs)]
    return worst(*errors)


def worst(*errors: float) -> float:
    """Return the largest error; infinity if one is nan, which max() may miss."""
    return math.inf if any(math.isnan(error) for error in errors) else max(errors)


def refuse_unknown_head(model: PreTrainedModel, head: LMHead, setup: Setup, tolerance: float) -> None:
    """Raise ModelError if decoder and head do not give the model's own logits, or if these are not finite numbers."""
    try:
        with _small_boundaries(model):
            off, own = _head_error(model, head, setup.device)
    except CODE_ERRORS as error:  # the model does not work with small boundaries
        _raise_device_failure(error)
        off, own = _head_error(model, head, setup.device)
    if not own.isfinite().all():
        broken = [name for name, p in model.named_parameters() if p.is_floating_point() and not p.isfinite().all()]
        raise not_finite_error(setup.model_name, broken, setup.precision)
    if not off <= tolerance:
        what = _("lorafit cannot train this model type: its outputs are computed in a non-standard way.")
        raise ModelError(what, found=_("{kind}: relative error {off:.1%}").format(kind=type(model).__name__, off=off))


def _head_error(model: PreTrainedModel, head: LMHead, device: str) -> tuple[float, Tensor]:
    """Return how far the model's own logits are from those of decoder and `head`, and these own logits.

    Logits that change with a later token count as different: PaliGemma's do, with SDPA and without an image.
    """
    ids_1T = _some_ids(model, max(SEGMENTS), device)
    with torch.no_grad(), using_attention(model, plain_attention(model)):
        hidden = decoder_of(model)(input_ids=ids_1T, use_cache=False).last_hidden_state
        own = causal_lm_of(model)(input_ids=ids_1T, use_cache=False).logits[0]
        shorter = causal_lm_of(model)(input_ids=ids_1T[:, :-1], use_cache=False).logits[0]
        return worst(difference(head(hidden[0]), own), difference(shorter, own[:-1])), own


def _gradients(outputs: Tensor, parameters: Sequence[Tensor]) -> Gradients:
    """Return the gradients for a seed as small as a loss's gradient, so that fp16 does not overflow."""
    largest = outputs.shape[-1] ** -0.5
    seed = torch.linspace(-largest, largest, outputs.numel(), device=outputs.device).view_as(outputs).to(outputs.dtype)
    return torch.autograd.grad(outputs, list(parameters), seed, allow_unused=True)


def _some_ids(model: PreTrainedModel, length: int, device: str) -> Tensor:
    ids = np.random.default_rng(0).integers(0, model.config.get_text_config().vocab_size, length)
    return torch.from_numpy(ids).to(device)[None]
