"""lorafit itself: its planner, engine and micro-batches. Options: any settings of `lorafit train`."""

from pathlib import Path
from typing import Any

import numpy as np

from lorafit import registry
from lorafit.config import TrainConfig
from lorafit.data.batching import build_step_batch
from lorafit.data.micro_batch import Sample
from lorafit.engines import allocator
from lorafit.engines.base import Engine, Setup
from lorafit.hardware import detect
from lorafit.models.spec import read_spec
from lorafit.planner.plan import Plan
from lorafit.planner.planner import DataStats, make_plan
from peers.protocol import Referee, Task


def config_of(task: Task, options: dict[str, Any]) -> TrainConfig:
    """Return the training config of `task`, with `options` on top."""
    settings = {
        "model_name": task.model,
        "effective_batch": len(task.steps[0]),
        "max_steps": len(task.steps),
        "max_length": task.max_length,
        "lora_r": task.lora_r,
        "lora_alpha": task.lora_alpha,
        "learning_rate": task.learning_rate,
        "lr_scheduler": "constant",
        "warmup_ratio": 0.0,
        "device": task.device,
        "precision": "fp32",
        "quantization": "none",
        "optimizer": "adamw",
    }
    return TrainConfig.model_validate({**settings, **options})


def plan_for(task: Task, options: dict[str, Any], facts: DataStats) -> Plan:
    """Return the plan for `task` with these options, on data of these lengths."""
    return make_plan(config_of(task, options), detect.detect_machine(), read_spec(Path(task.model)), facts)


def plan_of(task: Task, steps: list[list[Sample]]) -> Plan:
    """Return the plan for `task` with the lengths of its samples."""
    lengths = np.asarray([len(sample) for samples in steps for sample in samples])
    return plan_for(task, task.options, DataStats(lengths, lengths[:0], ""))


def open_engine(task: Task, plan: Plan) -> Engine:
    """Return the plan's engine with the model of `task` loaded."""
    setup = Setup(Path(task.model), task.model, plan.device, plan.precision, plan.quantization, plan=plan)
    engine: Engine = registry.load(registry.find_entry(registry.ENGINES, plan.engine)).open(setup)
    return engine


def main() -> None:
    """Train under the control of the race."""
    task = Task.read()
    referee = Referee(task)
    steps = [
        [Sample(np.asarray(ids, np.int32), np.asarray(targets, np.bool_)) for ids, targets in rows]
        for rows in task.rows()
    ]
    plan = plan_of(task, steps)
    allocator.set_profile(plan.allocator)
    engine = open_engine(task, plan)
    for number, samples in enumerate(steps, 1):
        referee.begin()
        data = build_step_batch(
            samples, range(len(samples)), plan.token_budget, plan.max_micro_batch, 1, engine.facts.shares_prefixes
        )
        result = engine.step(number, data.micro_batches, data.num_targets, plan.learning_rate)
        referee.stop()
        referee.report(result.loss_sum / data.num_targets)


if __name__ == "__main__":
    main()
