"""The training that the speed of the device is measured with: model shapes, rows of random tokens, and steps of them."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from card.settings import Settings
from lorafit.data.batching import StepBatch, build_step_batch
from lorafit.data.micro_batch import MicroBatch, Sample
from lorafit.hardware.catalogue.lengths import LAWYER_LLAMA
from lorafit.models.spec import ModelSpec, spec_from
from lorafit.models.weight_files import read_headers, weight_files
from lorafit.planner.memory import Layout
from lorafit.planner.plan import Plan
from lorafit.planner.speed import MicroBatchShape
from race.shapes import LLAMA, SHAPES, write_model

RANK, ALPHA, LEARNING_RATE = 32, 64.0, 1e-4
LONGEST = 512  # of the legal rows, as in the guide
TINY = {
    **LLAMA, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """Rows of one kind: their samples, samples per step, and the tokens of a micro-batch."""

    name: str
    samples: list[Sample]
    effective_batch: int
    token_budget: int

    @property
    def longest(self) -> int:
        """Return the tokens of the longest sample."""
        return max(map(len, self.samples))

    def step(self, number: int) -> list[Sample]:
        """Return the samples of step `number`, from 0."""
        first = number * self.effective_batch % len(self.samples)
        return self.samples[first : first + self.effective_batch]


def model_folder(shape: str, folder: Path, tiny: bool) -> Path:
    """Return `folder` with the model `shape` and random bf16 weights, written there if no part has done so."""
    if not (folder / "model.safetensors.index.json").is_file():
        note(f"writing {shape}")
        folder.mkdir(parents=True, exist_ok=True)
        write_model(folder, TINY if tiny else SHAPES[shape])
    return folder


def rows_of(kind: str, vocabulary: int, tiny: bool) -> Rows:
    """Return rows of random tokens: `legal` have the lengths of lawyer_llama, `long` have 4,096 tokens, two per step."""
    if kind == "legal":
        lengths, batch, budget = LAWYER_LLAMA.sample(64, LONGEST), 16, 8192
    else:
        lengths, batch, budget = np.full(8, 4096), 2, 8192
    lengths = np.minimum(lengths, 24) if tiny else lengths
    rng = np.random.default_rng(0)
    samples = []
    for length in lengths.tolist():
        mask = np.arange(length) >= round(length * (1 - LAWYER_LLAMA.target_share))
        samples.append(Sample(rng.integers(3, vocabulary, length).astype(np.int32), mask))
    return Rows(kind, samples, batch, budget)


def plan_of(settings: Settings, rows: Rows, precision: str, **changes: Any) -> Plan:
    """Return the plan of lorafit's training on these rows."""
    facts = {
        "precision": precision, "effective_batch": rows.effective_batch, "train_samples": len(rows.samples),
        "token_budget": rows.token_budget, "max_micro_batch": rows.effective_batch, "lora_r": RANK, "lora_alpha": ALPHA,
        "learning_rate": LEARNING_RATE, "lr_scheduler": "constant", "warmup_steps": 0, "loss_chunk": 1024,
    }  # fmt: skip
    return replace(settings.plan(), **{**facts, **changes})


def step_batch(rows: Rows, plan: Plan, number: int) -> StepBatch:
    """Return the micro-batches of step `number`."""
    samples = rows.step(number)
    return build_step_batch(samples, range(len(samples)), plan.token_budget, plan.max_micro_batch)


def shapes_of(batch: StepBatch) -> list[MicroBatchShape]:
    """Return the sizes of the micro-batches, for the planner's formulas."""
    return [shape_of(micro) for micro in batch.micro_batches]


def shape_of(micro: MicroBatch) -> MicroBatchShape:
    """Return the size of one micro-batch."""
    lengths = np.diff(micro.segments).astype(np.int64)
    return MicroBatchShape(micro.num_tokens, micro.num_targets, int((lengths**2).sum()))


def layout_of(plan: Plan, shapes: Sequence[MicroBatchShape], longest: int) -> Layout:
    """Return the layout that the planner's formulas take, for micro-batches of these sizes."""
    tokens = max(shape.tokens for shape in shapes)
    targets = sum(shape.targets for shape in shapes) / sum(shape.tokens for shape in shapes)
    return Layout(
        plan.device, plan.precision, plan.quantization, plan.optimizer, plan.lora_r, plan.lora_targets, tokens, longest,
        plan.recompute, plan.loss_chunk, target_share=targets,
    )  # fmt: skip


def spec_of(folder: Path) -> ModelSpec:
    """Return the architecture of the model in `folder`, which has no tokenizer."""
    headers = [header for file in weight_files(folder) for header in read_headers(file)]
    return spec_from(json.loads((folder / "config.json").read_text("utf-8")), headers, folder)


def note(text: str) -> None:
    """Say on stderr what is done now."""
    print(text, file=sys.stderr, flush=True)
