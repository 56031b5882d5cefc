"""A fast, deterministic engine without a tensor library, for tests of the loop and of the disk.

It follows the Engine protocol and learns one logit per token ID (a unigram model, logits w [V]) by gradient descent
with momentum. So losses fall, a split into micro-batches changes nothing, and equal runs write equal bytes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lorafit.data.micro_batch import MicroBatch
from lorafit.engines.base import EngineFacts, LossSum, OutOfMemory, Probe, Setup, StepResult, answers_one_by_one
from lorafit.run_folders.adapter import AdapterConfig, lora_names, read_adapter, write_adapter
from lorafit.sampling import Sampling, sample_token

VOCAB = 512
MODULE = "model.layers.0.self_attn.q_proj"


class FakeEngine:
    """A unigram model behind the Engine protocol, which documents the methods.

    A micro-batch of more than `memory_tokens` tokens raises OutOfMemory (None: no limit).
    """

    @classmethod
    def open(cls, setup: Setup) -> "FakeEngine":
        """Return an engine without a memory limit."""
        return cls(setup)

    def __init__(self, setup: Setup, memory_tokens: int | None = None) -> None:
        self.setup, self.memory_tokens = setup, memory_tokens
        self.weights_V = np.zeros(VOCAB, np.float64)
        self.momentum_V = np.zeros(VOCAB, np.float64)
        self.on = True
        self.facts = EngineFacts(VOCAB, [MODULE], True)

    def step(self, step: int, micro_batches: Sequence[MicroBatch], total_targets: int, lr: float) -> StepResult:
        results = [self._loss(micro) for micro in micro_batches]  # may raise, before any state changes
        gradient_V = sum((g for _loss, g in results), np.zeros(VOCAB)) / total_targets
        self.momentum_V = 0.9 * self.momentum_V + gradient_V
        self.weights_V = self.weights_V - 100 * lr * self.momentum_V
        return StepResult(sum(loss for loss, _g in results), float(np.linalg.norm(gradient_V)), None)

    def _loss(self, micro: MicroBatch) -> tuple[float, NDArray[np.float64]]:
        if self.memory_tokens is not None and micro.num_tokens > self.memory_tokens:
            raise OutOfMemory("Out of memory.", found=f"{micro.num_tokens} > {self.memory_tokens} tokens")
        targets = micro.input_ids[micro.target_mask] % VOCAB
        weights_V = self.weights_V if self.on else np.zeros(VOCAB)
        log_probs_V = weights_V - np.logaddexp.reduce(weights_V)
        counts_V = np.bincount(targets, minlength=VOCAB)
        return float(-(counts_V * log_probs_V).sum()), np.exp(log_probs_V) * len(targets) - counts_V

    def probe(self, micro_batch: MicroBatch) -> Probe:
        self._loss(micro_batch)
        return Probe(0.0, None)

    def set_recompute(self, layers: int) -> None:
        pass

    def release(self) -> None:
        pass

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> LossSum:
        losses = [self._loss(micro)[0] for micro in micro_batches]
        return LossSum(sum(losses), sum(micro.num_targets for micro in micro_batches))

    def save(self, folder: Path) -> None:
        self.save_adapter(folder)
        save_file({"weights": self.weights_V, "momentum": self.momentum_V}, folder / "optimizer.safetensors")

    def load(self, folder: Path) -> None:
        state = load_file(folder / "optimizer.safetensors")
        self.weights_V, self.momentum_V = state["weights"], state["momentum"]

    def save_adapter(self, folder: Path) -> None:
        a, b = lora_names(MODULE)
        tensors = {a: np.zeros((1, 1), np.float32), b: self.weights_V.astype(np.float32)[:, None]}
        write_adapter(folder, AdapterConfig(self.setup.model_name, 1, 1.0, 0.0, ["q_proj"]), tensors)

    def load_adapter(self, folder: Path) -> None:
        self.weights_V = read_adapter(folder)[1][lora_names(MODULE)[1]][:, 0].astype(np.float64)

    def set_adapter(self, on: bool) -> None:
        self.on = on

    def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[int]:
        rng = np.random.default_rng([sampling.seed, *prompt_ids])
        for _i in range(sampling.new_tokens(len(prompt_ids))):
            token = sample_token(self.weights_V.astype(np.float32), sampling, rng)
            if token in sampling.stop_ids:
                return
            yield token

    def answers(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[dict[int, list[int]]]:
        return answers_one_by_one(self, prompts, sampling)

    def peak_bytes(self) -> int | None:
        return None
