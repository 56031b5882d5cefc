"""Reference loss and gradients from transformers and peft in float64: one sample at a time, full logits, no engine."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peft
import torch
import torch.nn.functional as F
import transformers

from lorafit.data.micro_batch import Sample
from lorafit.planner.plan import Plan
from lorafit.planner.schedule import step_samples
from support.engine_runs import Arrays


@dataclass(frozen=True)
class Wanted:
    """Mean loss of a step, and its gradients by their names in PEFT's files."""

    loss: float
    gradients: Arrays


def peft_model(folder: Path, adapter: Path, trainable: bool = True) -> torch.nn.Module:
    """Load the base model in `folder` with `adapter`, in float64 with eager attention."""
    base = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    )
    model = peft.PeftModel.from_pretrained(base, adapter, is_trainable=trainable, autocast_adapter_dtype=False)
    return model.double().eval()


def sample_loss(model: torch.nn.Module, sample: Sample) -> torch.Tensor:
    """Return the loss of one sample: the sum over its targets, in nats, from the logits in float64."""
    device = next(model.parameters()).device
    ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None].to(device)
    labels = torch.where(torch.from_numpy(sample.target_mask).to(device), ids[0], -100)
    return F.cross_entropy(model(input_ids=ids).logits[0, :-1].double(), labels[1:], reduction="sum")


def reference(folder: Path, adapter: Path, plan: Plan, samples: list[Sample]) -> Wanted:
    """Return loss and gradients of step 1 of `plan`, with the weights in `adapter`."""
    model = peft_model(folder, adapter)
    taken = [samples[row] for row in step_samples(plan, 1)]
    total = sum(sample.num_targets for sample in taken)
    loss_sum = 0.0
    for sample in taken:
        loss = sample_loss(model, sample)
        (loss / total).backward()
        loss_sum += loss.item()
    named = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    zero = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named.items()}
    return Wanted(loss_sum / total, {n: grad.numpy() for n, grad in zero.items()})
