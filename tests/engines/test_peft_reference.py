"""The torch engine trains every model family like a plain loop with transformers, peft and AdamW."""

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from support import tiny

from lorafit.config import TrainConfig
from lorafit.data.batching import build_step_batch
from lorafit.data.dataset import prepare
from lorafit.data.micro_batch import Sample
from lorafit.data.sources import read_rows
from lorafit.engines.tokenizer import load_tokenizer
from lorafit.engines.torch import self_check
from lorafit.engines.torch.engine import TorchEngine
from lorafit.planner.plan import Plan
from lorafit.planner.schedule import lr_at, step_samples


def reference_steps(
    model: torch.nn.Module, samples: list[Sample], plan: Plan
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train by the plain loop: one sample at a time, full logits, torch's clipping and AdamW.

    Return the mean loss of each step, and the gradients of step 1 before clipping.
    """
    named = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(named.values(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    losses, first = [], {}
    for step in range(1, plan.steps + 1):
        taken = [samples[row] for row in step_samples(plan, step)]
        total = sum(sample.num_targets for sample in taken)
        loss_sum = 0.0
        for sample in taken:
            ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None]
            labels = torch.where(torch.from_numpy(sample.target_mask), ids[0], -100)
            logits = model(input_ids=ids).logits[0, :-1]
            loss = F.cross_entropy(logits, labels[1:], reduction="sum") / total
            loss.backward()
            loss_sum += loss.item()
        losses.append(loss_sum)
        if step == 1:
            first = {n: p.grad.clone() for n, p in named.items()}
        torch.nn.utils.clip_grad_norm_(named.values(), plan.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, plan)
        optimizer.step()
        optimizer.zero_grad()
    return losses, first


def end_to_end(grads: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return all gradients as one vector, in the order of their names."""
    return torch.cat([grads[name].flatten() for name in sorted(grads)])


def assert_equals_reference(
    engine: TorchEngine,
    folder: Path,
    samples: list[Sample],
    plan: Plan,
    tmp_path: Path,
    together: float = 1e-5,
    worst: float = 1e-5,
) -> None:
    """Train `engine` by `plan` and assert that losses, gradients and the final adapter equal the plain loop's.

    `together` is the largest error of step 1's gradients as one vector, `worst` that of each tensor.
    """
    tiny.fill_b(engine)
    engine.save_adapter(tmp_path)
    start = {n: p.detach().clone() for n, p in engine._parameters().items()}
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model = peft.PeftModel.from_pretrained(base, tmp_path, is_trainable=True).eval()
    wanted, wanted_grads = reference_steps(model, samples, plan)
    data = build_step_batch(samples, step_samples(plan, 1), plan.token_budget, plan.max_micro_batch)
    grads = tiny.gradients(engine, 1, data.micro_batches, data.num_targets)
    assert self_check.difference(end_to_end(grads), end_to_end(wanted_grads)) < together
    assert tiny.worst(grads, wanted_grads) < worst
    for step in range(1, plan.steps + 1):
        data = build_step_batch(samples, step_samples(plan, step), plan.token_budget, plan.max_micro_batch)
        result = engine.step(step, data.micro_batches, data.num_targets, lr_at(step, plan))
        assert result.loss_sum / data.num_targets == pytest.approx(wanted[step - 1], rel=1e-5)
    after = {n.replace(".default", ""): p.detach() for n, p in model.named_parameters() if p.requires_grad}
    moved, off = 0.0, 0.0
    for name, parameter in engine._parameters().items():
        if "lora_B" in name:
            off += float((parameter - after[name]).norm() ** 2)
            moved += float((after[name] - start[name]).norm() ** 2)
    assert moved > 0
    norm = sum(float(p.norm() ** 2) for n, p in after.items() if "lora_B" in n)
    assert (off / norm) ** 0.5 < 1e-3


@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f != "mixtral"])
def test_ten_steps_equal_a_plain_peft_loop(models: Path, family: str, tmp_path: Path) -> None:
    plan = tiny.make_plan(token_budget=64)
    engine = tiny.open_engine(models / family, plan)
    assert engine.generic.packs, engine.facts.notes
    assert_equals_reference(engine, models / family, tiny.make_samples(32), plan, tmp_path)


@pytest.mark.slow
def test_ten_steps_equal_a_plain_peft_loop_on_the_demo_model(demo_folder: Path, tmp_path: Path) -> None:
    """The data are real rows. The bounds are those of float32.

    In the worst tensor, peft's gradients differ from float64 by 3e-5, and lorafit's by as much.
    """
    plan = tiny.make_plan(effective_batch=4, train_samples=16, token_budget=128, lora_r=8, loss_chunk=50)
    config = TrainConfig(max_length=64, val_size=0)
    data = prepare(list(read_rows("demo", "train[:16]")), load_tokenizer(demo_folder), config)
    samples = list(data.train)
    assert_equals_reference(
        tiny.open_engine(demo_folder, plan), demo_folder, samples, plan, tmp_path, together=5e-5, worst=1e-4
    )


def test_parameters_are_counted_as_peft_counts_them(models: Path) -> None:
    engine = tiny.open_engine(models / "llama", tiny.make_plan())
    base = transformers.AutoModelForCausalLM.from_pretrained(models / "llama")
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert engine.facts.trainable_parameters == model.get_nb_trainable_parameters()[0]


def test_a_model_that_packs_wrongly_trains_sample_by_sample_and_says_so(
    models: Path, leaking_attention: str, tmp_path: Path
) -> None:
    plan = tiny.make_plan()
    engine = tiny.open_engine(models / "qwen3", plan)
    engine.packed = None
    engine.model.set_attn_implementation(leaking_attention)
    notes = engine._check_packing()
    assert not engine.generic.packs
    assert any("computed one at a time" in note for note in notes)
    assert_equals_reference(engine, models / "qwen3", tiny.make_samples(32), plan, tmp_path)


@pytest.mark.parametrize("family", ["llama4", "gpt_oss", "recurrent_gemma"])
def test_a_model_that_cannot_be_packed_learns_as_a_plain_peft_loop_does(
    models: Path, family: str, tmp_path: Path
) -> None:
    plan = tiny.make_plan(steps=3)
    engine = tiny.open_engine(models / family, plan)
    assert not engine.generic.packs
    assert any("computed one at a time" in note for note in engine.facts.notes)
    assert_equals_reference(engine, models / family, tiny.make_samples(32), plan, tmp_path)


def test_the_difference_of_many_tensors_is_that_of_one_vector() -> None:
    generator = torch.Generator().manual_seed(0)
    found, wanted = ([torch.randn(n, generator=generator) for n in (3, 50, 1)] for _side in range(2))
    assert self_check.difference_of_all(found, wanted) == pytest.approx(
        self_check.difference(torch.cat(found), torch.cat(wanted)), rel=1e-6
    )
    assert np.isnan(self_check.difference_of_all([torch.tensor([float("nan")])], [torch.ones(1)]))
