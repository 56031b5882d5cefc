"""Does the engine evaluate and answer as transformers does, with and without its adapter?"""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
import transformers

from lorafit.data.batch import pack
from lorafit.sampling import Sampling


def test_evaluation_equals_the_models_own_loss(models: Path) -> None:
    engine = tiny.open_engine(models / "gemma2", tiny.make_plan())
    samples = tiny.make_samples(5)
    found = engine.evaluate([pack(samples, range(5), range(5))])
    base = transformers.AutoModelForCausalLM.from_pretrained(models / "gemma2", attn_implementation="eager").eval()
    wanted = 0.0
    for sample in samples:
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(sample.target_mask), ids[0], -100)
        with torch.no_grad():
            wanted += F.cross_entropy(base(input_ids=ids).logits[0, :-1], labels[1:], reduction="sum").item()
    assert found.num_targets == sum(s.num_targets for s in samples)
    assert found.loss_sum == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gemma3"])
def test_greedy_answers_equal_transformers_generate(models: Path, family: str) -> None:
    engine = tiny.open_engine(models / family, None)
    prompt = list(range(5, 25))
    found = list(engine.generate(prompt, Sampling(temperature=0.0, max_new_tokens=12)))
    model = transformers.AutoModelForCausalLM.from_pretrained(models / family, attn_implementation="eager").eval()
    ids = torch.tensor([prompt])
    for _i in range(12):
        with torch.no_grad():
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert found == ids[0, len(prompt) :].tolist()


def test_the_adapter_can_be_switched_off(models: Path) -> None:
    engine = tiny.open_engine(models / "llama", tiny.make_plan())
    samples = tiny.make_samples(5)
    micro_batches = [pack(samples, range(5), range(5))]
    base = engine.evaluate(micro_batches).loss_sum
    tiny.fill_b(engine)
    assert engine.evaluate(micro_batches).loss_sum != base
    engine.set_adapter(False)
    assert engine.evaluate(micro_batches).loss_sum == base


def test_a_probe_leaves_no_trace(models: Path) -> None:
    engine = tiny.open_engine(models / "llama", tiny.make_plan())
    samples = tiny.make_samples(5)
    probe = engine.probe(pack(samples, range(5), range(5)))
    assert probe.peak_bytes is None or probe.peak_bytes > 0
    assert all(p.grad is None for p in engine._parameters().values())
