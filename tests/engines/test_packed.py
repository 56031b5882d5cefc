"""The fast path equals the generic path for all model shapes, micro-batch splits and shared prefixes."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny

from lorafit.data.micro_batch import MicroBatch, Sample, pack
from lorafit.data.shared_prefix import repeated_prefixes
from lorafit.engines.torch.engine import TorchEngine
from lorafit.engines.torch.packed import attention

FULL: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"use_sliding_window": False, "max_window_layers": 9},
    "qwen3": {},
    "mistral": {"sliding_window": None},
}


@pytest.fixture(scope="module")
def full_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of each family in FULL, whose tokens see all earlier tokens of their sample."""
    folder = tmp_path_factory.mktemp("full")
    for family, changes in FULL.items():
        tiny.save_model(family, folder / family, **changes)
    return folder


def with_prefix(samples: list[Sample], length: int) -> list[Sample]:
    """Return `samples` after the same `length` tokens, which are not in the loss, like a system prompt."""
    ids, mask = np.arange(3, 3 + length, dtype=np.int32), np.zeros(length, np.bool_)
    return [Sample(np.concatenate([ids, s.input_ids]), np.concatenate([mask, s.target_mask])) for s in samples]


def packed(samples: list[Sample]) -> MicroBatch:
    """Return a micro-batch of all `samples`."""
    return pack(samples, range(len(samples)), range(len(samples)))


def grads_of(engine: TorchEngine, *micro_batches: MicroBatch) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss and the gradients of a step of `micro_batches`."""
    loss = engine._accumulate(1, micro_batches, sum(micro.num_targets for micro in micro_batches))
    grads = {name: p.grad.clone() for name, p in engine._parameters().items() if p.grad is not None}
    engine.optimizer.drop_gradients()
    return loss, grads


@pytest.mark.parametrize("family", FULL)
@pytest.mark.parametrize("prefix", [0, 9])
@pytest.mark.parametrize("recompute", [0, 2])
@pytest.mark.parametrize("changes", [{}, {"lora_dropout": 0.2}, {"precision": "bf16"}, {"quantization": "4bit"}])
def test_loss_and_gradients_equal_the_generic_path(
    full_models: Path, family: str, prefix: int, recompute: int, changes: dict[str, Any]
) -> None:
    engine = tiny.open_engine(full_models / family, tiny.make_plan(recompute=recompute, **changes))
    assert engine.packed is not None, engine.facts.notes
    tiny.fill_b(engine)
    samples = with_prefix(tiny.make_samples(9, longest=200), prefix)
    shared = [prefix] * 9
    micro_batches = [
        pack(samples[:4], range(4), range(4), shared[:4]),
        pack(samples[4:], range(5), range(4, 9), shared[4:]),
    ]
    assert [len(ids) for ids in repeated_prefixes(micro_batches)] == ([prefix] if prefix else [])
    loss, grads = grads_of(engine, *micro_batches)
    evaluated = engine.evaluate(micro_batches)
    engine.packed = None
    wanted_loss, wanted = grads_of(engine, *micro_batches)
    assert loss == pytest.approx(wanted_loss, rel=1e-6)
    assert tiny.worst(grads, wanted) < 1e-5
    assert evaluated.loss_sum == pytest.approx(engine.evaluate(micro_batches).loss_sum, rel=1e-6)


def test_only_some_layers_have_an_adapter(models: Path) -> None:
    engine = tiny.open_engine(models / "llama", tiny.make_plan(lora_targets="k_proj,down_proj"))
    assert engine.packed is not None
    tiny.fill_b(engine)
    micro = packed(tiny.make_samples(4))
    _loss, grads = grads_of(engine, micro)
    engine.packed = None
    _loss, wanted = grads_of(engine, micro)
    assert tiny.worst(grads, wanted) < 1e-5


@pytest.mark.parametrize("family", ["granite", "gemma2", "phi3", "mistral", "mixtral"])
def test_an_unsupported_model_takes_the_generic_path_with_a_note(models: Path, family: str) -> None:
    engine = tiny.open_engine(models / family, tiny.make_plan())
    assert engine.packed is None
    assert any("Generic path" in note for note in engine.facts.notes)


def test_a_window_matters_only_in_steps_with_longer_samples(tmp_path: Path) -> None:
    engine = tiny.open_engine(tiny.save_model("mistral", tmp_path, sliding_window=100), tiny.make_plan())
    assert engine.packed is not None
    short, long = tiny.make_samples(4, longest=90), tiny.make_samples(9, longest=200)
    assert engine._choose_path([packed(short)]) is engine.packed
    assert max(map(len, long)) > 100
    assert engine._choose_path([packed(short), packed(long)]) is engine.generic


@pytest.mark.parametrize("changes", [{"quantization": "8bit"}, {"precision": "fp16"}])
def test_8_bits_and_half_precision_take_the_generic_path(models: Path, changes: dict[str, Any]) -> None:
    engine = tiny.open_engine(models / "llama", dataclasses.replace(tiny.make_plan(), **changes))
    assert engine.packed is None


def test_weights_are_not_kept_twice_and_a_loaded_adapter_is_seen(models: Path, tmp_path: Path) -> None:
    engine = tiny.open_engine(models / "llama", tiny.make_plan())
    assert engine.packed is not None
    fused = engine.packed.layers[0].qkv
    q = engine.layers["model.layers.0.self_attn.q_proj"]
    assert fused.weights[0].data_ptr() == q.base.weight.data_ptr()
    tiny.fill_b(engine)
    engine.save_adapter(tmp_path)
    with torch.no_grad():
        q.lora_A.zero_()
    assert float(fused.a_RI[: q.lora_A.shape[0]].abs().sum()) == 0
    engine.load_adapter(tmp_path)
    assert float(fused.a_RI[: q.lora_A.shape[0]].abs().sum()) > 0


@pytest.mark.parametrize(("n", "prefix"), [(1, 0), (5, 7), (128, 0), (129, 3), (300, 40)])
def test_attention_equals_a_float64_reference_with_a_mask(n: int, prefix: int) -> None:
    generator = torch.Generator().manual_seed(0)
    keys, groups, width, seen = 2, 3, 8, prefix + n
    q, k, v, grad = (
        torch.randn(*shape, generator=generator)
        for shape in ((keys, groups, n, width), (keys, seen, width), (keys, seen, width), (keys, groups, n, width))
    )
    wanted = [t.double().requires_grad_() for t in (q, k, v)]
    allowed = torch.arange(n)[:, None] + prefix >= torch.arange(seen)
    scores = torch.einsum("kgnd,kld->kgnl", wanted[0], wanted[1]) * 0.3
    out = torch.softmax(scores.masked_fill(~allowed, float("-inf")), -1) @ wanted[2][:, None]
    out.backward(grad.double())
    found, lse, grad_q = torch.empty_like(q), torch.empty(keys, groups, n), torch.empty_like(q)
    attention.forward(q, torch.cat([k, v]), 0.3, found, lse)
    assert float((found - out.detach()).norm() / out.detach().norm()) < 1e-6
    dots = (grad * found).sum(-1)
    grad_k, grad_v = attention.backward(grad, q, torch.cat([k, v]), (lse, dots), 0.3, grad_q).chunk(2)
    for a, b in zip((grad_q, grad_k, grad_v), wanted, strict=True):
        assert b.grad is not None
        assert float((a - b.grad).norm()) <= 2e-6 * float(b.grad.norm())
