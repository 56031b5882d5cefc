"""Training in two processes: `two_ranks.py MODEL OUT SCENARIO...` writes the results of rank N to OUT.N.

tests/distributed/test_two_ranks.py trains the same scenarios in one process and compares.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # this file is run as a script
from lorafit.config import TrainConfig
from lorafit.data.batching import build_step_batch
from lorafit.data.dataset import prepare
from lorafit.data.micro_batch import Sample
from lorafit.data.sources import read_rows
from lorafit.distributed.collectives import SINGLE_PROCESS, Collectives
from lorafit.distributed.launch import launch_ranks
from lorafit.engines.base import OutOfMemory, Setup
from lorafit.engines.tokenizer import load_tokenizer
from lorafit.engines.torch import process_group as torch_ranks
from lorafit.engines.torch.engine import TorchEngine
from lorafit.planner.plan import Plan
from lorafit.planner.schedule import lr_at, step_samples
from support import tiny

BUDGET = 60
SCENARIOS: dict[str, dict[str, Any]] = {
    "fast": {},
    "fast, dropout": {"lora_dropout": 0.1, "recompute": 1},
    "generic": {"max_micro_batch": 3},
    "one sample a step": {"effective_batch": 1},  # rank 1 has no sample
    "sharded": {"shard": True, "lora_dropout": 0.1, "recompute": 2},
    "sharded, one sample a step": {"shard": True, "effective_batch": 1},
}


def samples_of(model: Path) -> list[Sample]:
    """Return 32 samples: random ones, or rows of the demo data for a real model."""
    if not is_real(model):
        return tiny.make_samples(32)
    config = TrainConfig(max_length=96, val_size=0)
    return list(prepare(list(read_rows("demo", "train[:32]")), load_tokenizer(model), config).train)


def is_real(model: Path) -> bool:
    """Return whether `model` is the real demo model, not a tiny random one."""
    return (model / "tokenizer.json").is_file()


def plan_of(name: str, model: Path) -> Plan:
    """Return the plan of the scenario `name`.

    The loss of the demo model is computed over 50 targets at a time: with 7 it is 4e-5 off, because MKL multiplies few
    rows by another method.
    """
    return tiny.make_plan(processes=2, loss_chunk=50 if is_real(model) else 7, **SCENARIOS[name])


def opened(model: Path, plan: Plan, ranks: Collectives, generic: bool) -> TorchEngine:
    """Open the model with nonzero lora_B; `generic` switches the fast path off."""
    engine = TorchEngine.open(Setup(model, str(model), "cpu", "fp32", plan=plan, ranks=ranks))
    if generic:
        engine.packed = None
    tiny.fill_b(engine)
    return engine


def seen(model: Path, name: str, ranks: Collectives = SINGLE_PROCESS) -> Iterator[tuple[str, Any]]:
    """Train ten steps of a scenario and yield its results as (name, value).

    `gradients` of the first step, `losses` of all steps, `evaluated` loss, final `weights`, and `held`: bytes of the base.
    """
    plan, here, samples = plan_of(name, model), ranks.own_rank, samples_of(model)
    engine = opened(model, plan, ranks, name == "generic")
    first = build_step_batch(samples, step_samples(plan, 1), BUDGET, plan.max_micro_batch, here.count)
    engine._gradients_of_step(1, first.for_rank(here.rank), first.num_targets)
    yield "gradients", {n: p.grad.clone() for n, p in engine._parameters().items() if p.grad is not None}
    engine.optimizer.drop_gradients()
    losses = []
    for step in range(1, plan.steps + 1):
        data = build_step_batch(samples, step_samples(plan, step), BUDGET, plan.max_micro_batch, here.count)
        result = engine.step(step, data.for_rank(here.rank), data.num_targets, lr_at(step, plan))
        losses.append(result.loss_sum / data.num_targets)
    yield "losses", losses
    data = build_step_batch(samples, range(9), BUDGET, 4096, here.count)
    yield "evaluated", engine.evaluate(data.for_rank(here.rank)).mean
    yield "weights", {n: p.detach().clone() for n, p in engine._parameters().items()}
    yield "held", held_bytes(engine)


def held_bytes(engine: TorchEngine) -> int:
    """Return the bytes of base weights that this process keeps between passes."""
    held: list[Any] = [p for p in engine.model.parameters() if not p.requires_grad]
    return sum(p.to_local().nbytes if isinstance(p, DTensor) else p.nbytes for p in held)


def out_of_memory_on_one(model: Path, ranks: Collectives) -> list[str]:
    """Make rank 1 alone run out of memory in its first pass; return the outcomes of two tries of step 1.

    Both ranks must get OutOfMemory in the first try. The second try must give the usual loss.
    """
    plan, here, said = plan_of("fast", model), ranks.own_rank, []
    engine = opened(model, plan, ranks, False)
    real = engine._accumulate

    def accumulate(*args: Any) -> float:
        engine._accumulate = real  # type: ignore[method-assign]
        if here.rank == 1:
            raise torch.OutOfMemoryError("out of memory")
        return real(*args)

    engine._accumulate = accumulate  # type: ignore[method-assign]
    data = build_step_batch(samples_of(model), step_samples(plan, 1), BUDGET, plan.max_micro_batch, here.count)
    for _try in range(2):
        try:
            result = engine.step(1, data.for_rank(here.rank), data.num_targets, 1e-3)
            said.append(f"{result.loss_sum / data.num_targets:.4f}")
        except OutOfMemory:
            said.append("out of memory")
    return said


def main(model: Path, out: Path, names: list[str]) -> None:
    """Run the scenarios `names` as one of two ranks, and write this rank's results."""
    with torch_ranks.join_process_group(2, lambda: None) as ranks:
        found: dict[str, Any] = {name: dict(seen(model, name, ranks)) for name in names}
        found["out of memory"] = out_of_memory_on_one(model, ranks)
        found["told"] = ranks.broadcast_json({"who": ranks.own_rank.rank})
        write(out.with_suffix(f".{ranks.own_rank.rank}"), found)


def write(path: Path, found: dict[str, Any]) -> None:
    """Write the results: numbers as JSON to `path`, tensors to `path`.safetensors. `found` loses its tensors."""
    tensors = {
        f"{name}|{what}|{parameter}": tensor
        for name in SCENARIOS.keys() & found.keys()
        for what in ("gradients", "weights")
        for parameter, tensor in found[name].pop(what).items()
    }
    save_file(tensors, path.with_suffix(f"{path.suffix}.safetensors"))
    path.write_text(json.dumps(found))


def read(path: Path) -> dict[str, Any]:
    """Read the results that write() wrote."""
    found: dict[str, Any] = json.loads(path.read_text())
    for key, tensor in load_file(path.with_suffix(f"{path.suffix}.safetensors")).items():
        name, what, parameter = key.split("|")
        found[name].setdefault(what, {})[parameter] = tensor
    return found


if __name__ == "__main__":
    if "RANK" not in os.environ:  # the first process starts the second one as this script
        torch_ranks.launch_ranks = lambda count, port: launch_ranks(count, port, (sys.executable, *sys.argv))
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
