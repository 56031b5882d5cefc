"""Variable-length attention equals attention segment by segment, and a kernel that computes wrongly is not used.

The tests need no GPU: on the CPU, a float32 reference with the kernel's signature takes its place. Other tests give the
real operator fake tensors, which check shapes and dtypes only.
"""

import importlib
import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lorafit.data.micro_batch import pack
from lorafit.engines.base import Setup
from lorafit.engines.torch import self_check
from lorafit.engines.torch.attention import (
    SEGMENT_ATTENTION,
    VARLEN_ATTENTION,
    segment_arguments,
    segment_attention,
    supports_varlen,
    varlen_attention,
)
from lorafit.engines.torch.device import DEVICES
from lorafit.engines.torch.engine import TorchEngine

ENDS = torch.tensor([0, 5, 14, 17], dtype=torch.int32)


def reference(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, **how: Any
) -> Tensor:
    """Compute varlen_attn as its documentation defines it: a masked softmax over each segment, for inputs [T,N,D]."""
    left, right = how["window_size"]
    assert right == 0
    assert max_q == max_k == int(cu_seq_q.diff().max())
    assert how["enable_gqa"] == (query.shape[1] != key.shape[1])
    outs = []
    groups = query.shape[1] // key.shape[1]
    for (begin, end), (first, last) in zip(
        *(itertools.pairwise(c.tolist()) for c in (cu_seq_q, cu_seq_k)), strict=True
    ):
        q = query[begin:end].float()
        k, v = (x[first:last].float().repeat_interleave(groups, 1) for x in (key, value))
        scores = torch.einsum("qnd,knd->nqk", q, k) * (q.shape[2] ** -0.5 if how["scale"] is None else how["scale"])
        distance = torch.arange(end - begin)[:, None] - torch.arange(last - first)[None]
        hidden = (distance < 0) | (distance > left if left >= 0 else torch.tensor(False))
        outs.append(torch.einsum("nqk,knd->qnd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v))
    return torch.cat(outs).to(query.dtype)


def leaking(query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, cu_k: Tensor, *sizes: int, **how: Any) -> Tensor:
    """Attend to all samples as if they were one."""
    ends = cu_q[[0, -1]]
    return reference(query, key, value, ends, ends, len(query), len(key), **how)


def without_windows(*args: Any, **how: Any) -> Tensor:
    return reference(*args, **{**how, "window_size": (-1, 0)})


def unable(*_args: Any, **_how: Any) -> Tensor:
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nmore")


UseKernel = Callable[[Callable[..., Tensor]], None]


@pytest.fixture
def use_kernel(monkeypatch: pytest.MonkeyPatch) -> UseKernel:
    """A function that puts its argument in the place of torch's kernel, which needs a GPU."""

    def use(kernel: Callable[..., Tensor]) -> None:
        monkeypatch.setattr(importlib.import_module("torch.nn.attention.varlen"), "varlen_attn", kernel)

    return use


class EngineWithFlash(TorchEngine):
    """An engine on a CPU that reports a flash kernel."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.device = replace(self.device, has_flash=lambda: True)


def open_with_flash(folder: Path) -> TorchEngine:
    """Open the model in `folder` in fp16, which the kernel requires."""
    plan = tiny.make_plan(precision="fp16")
    return EngineWithFlash.open(Setup(folder, str(folder), "cpu", "fp16", plan=plan))


def some_heads(width: int = 8) -> list[Tensor]:
    """Return query, key and value of 17 tokens, with 4 query heads and 2 key heads."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, 17, width, generator=generator, requires_grad=True) for heads in (4, 2, 2)]


@pytest.mark.parametrize("options", [{}, {"scaling": 0.3}, {"sliding_window": 4}, {"sliding_window": 99}])
def test_it_asks_the_kernel_for_what_segments_compute(use_kernel: UseKernel, options: dict[str, Any]) -> None:
    use_kernel(reference)
    inputs, found = some_heads(), []
    for function in (varlen_attention, segment_attention):
        out, _none = function(torch.nn.Module(), *inputs, None, **segment_arguments(ENDS, "cpu"), **options)
        assert out.shape == (1, 17, 4, 8)
        found.append([out, *torch.autograd.grad(out, inputs, torch.ones_like(out) + out.detach())])
    assert max(self_check.difference(a, b) for a, b in zip(*found, strict=True)) < 1e-6


def test_a_soft_cap_is_computed_segment_by_segment() -> None:
    """The real kernel raises an error on a CPU, so this test shows that it is not called."""
    inputs, options = some_heads(), {"softcap": 5.0, **segment_arguments(ENDS, "cpu")}
    out, wanted = (f(torch.nn.Module(), *inputs, None, **options)[0] for f in (varlen_attention, segment_attention))
    assert torch.equal(out, wanted)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3", "qwen3", "mixtral", "granite"])
def test_a_whole_model_has_the_same_loss_and_gradients(models: Path, use_kernel: UseKernel, family: str) -> None:
    """One layer uses gradient checkpointing, and some samples are longer than the windows."""
    use_kernel(reference)
    engine = tiny.open_engine(models / family, tiny.make_plan(recompute=1))
    engine.packed = None
    tiny.fill_b(engine)
    micro = pack(tiny.make_samples(5, longest=40), range(5), range(5))
    (loss, grads), (wanted_loss, wanted) = (
        with_attention(engine, name, micro) for name in (VARLEN_ATTENTION, SEGMENT_ATTENTION)
    )
    assert loss == pytest.approx(wanted_loss, rel=1e-6)
    assert tiny.worst(grads, wanted) < 1e-5


def with_attention(engine: TorchEngine, name: str, micro: Any) -> tuple[float, dict[str, Tensor]]:
    """Return loss and gradients of `micro` with the attention implementation `name`."""
    engine.model.set_attn_implementation(name)
    loss = engine._accumulate(1, [micro], micro.num_targets)
    grads = {name: p.grad.clone() for name, p in engine._parameters().items() if p.grad is not None}
    engine.optimizer.drop_gradients()
    return loss, grads


def test_a_right_kernel_is_used_with_a_note(models: Path, use_kernel: UseKernel) -> None:
    use_kernel(reference)
    engine = open_with_flash(models / "llama")
    assert engine.model.config._attn_implementation == VARLEN_ATTENTION
    assert engine.generic.packs
    assert any(note.startswith("✓ Attention: one flash kernel") for note in engine.facts.notes)


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (leaking, "relative error"),
        (without_windows, "relative error"),
        (unable, "RuntimeError: FlashAttention only supports Ampere GPUs or newer.)"),
        (None, "Error"),  # the real kernel, which a CPU does not have
    ],
)
def test_a_wrong_kernel_or_one_that_raises_leaves_segments_and_a_note(
    models: Path, use_kernel: UseKernel, kernel: Callable[..., Tensor] | None, why: str
) -> None:
    if kernel is not None:
        use_kernel(kernel)
    engine = open_with_flash(models / "llama")
    assert engine.model.config._attn_implementation == SEGMENT_ATTENTION
    assert engine.generic.packs
    (note,) = [note for note in engine.facts.notes if note.startswith("Attention: computed sample by sample")]
    assert why in note
    assert "\n" not in note


def test_a_torch_without_the_kernel_leaves_segments(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    engine = open_with_flash(models / "llama")
    assert engine.model.config._attn_implementation == SEGMENT_ATTENTION


@pytest.mark.parametrize(
    ("capability", "dtype", "may"),
    [
        ((6, 0), torch.float16, False),  # P100
        ((7, 5), torch.float16, False),  # T4
        ((8, 0), torch.float32, False),  # A100
        ((8, 0), torch.bfloat16, True),
        ((8, 9), torch.float16, True),  # L4
        ((12, 0), torch.bfloat16, True),
    ],
)
def test_which_gpus_may_use_the_kernel(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype, may: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert supports_varlen(DEVICES["cuda"], dtype) is may


@pytest.mark.parametrize("name", ["cpu", "mps"])
def test_other_devices_do_not_use_the_kernel(name: str) -> None:
    assert not supports_varlen(DEVICES[name], torch.float16)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_real_operator_accepts_its_arguments_on_a_fake_gpu(dtype: torch.dtype, window: int | None) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        q, k, v = (torch.empty(1, heads, 17, 64, device="cuda", dtype=dtype) for heads in (6, 2, 2))
        ends = {"cu_seq_lens_q": ENDS, "cu_seq_lens_k": torch.empty(4, dtype=torch.int32, device="cuda")}
        out, _none = varlen_attention(torch.nn.Module(), q, k, v, None, sliding_window=window, scaling=0.1, **ends)
    assert (out.shape, out.dtype, out.device.type) == ((1, 17, 6, 64), dtype, "cuda")


def test_gradients_pass_through_the_real_operator() -> None:
    """The tensors are on "meta": autograd would need a real GPU for fake CUDA tensors."""
    inputs = [
        torch.empty(1, heads, 17, 64, device="meta", dtype=torch.float16, requires_grad=True) for heads in (6, 2, 2)
    ]
    out, _none = varlen_attention(torch.nn.Module(), *inputs, None, **segment_arguments(ENDS, "meta"))
    grads = torch.autograd.grad(out, inputs, torch.empty_like(out))
    assert [g.shape for g in grads] == [x.shape for x in inputs]
