"""Memory, time and validation loss of one base in one engine, in a process of its own: python -m bases.learn FLAGS.json

The process prints one line of JSON. Peak memory is that of the whole process, including imports and loading.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import parity
from lorafit.config import TrainConfig
from lorafit.engines import allocator
from lorafit.engines.base import Engine
from lorafit.hardware import detect
from lorafit.models.demo import data_path
from peers.protocol import process_peak_bytes
from race.task import LAWYER_LLAMA

BUDGET = 512  # tokens per micro-batch


def task_of(flags: dict[str, Any]) -> parity.Task:
    """Return the task of `flags`: legal rows (else the demo's rows) and LoRA on all linear layers.

    Between the bases of one benchmark only engine and quantization differ.
    """
    rows = LAWYER_LLAMA if LAWYER_LLAMA.is_file() else data_path()
    steps, batch, held_out = flags["steps"], flags["batch"], flags["held_out"]
    taken = int(1.5 * steps * batch) + 2 * held_out  # some rows are rejected or duplicates
    config = TrainConfig(
        model_name="demo", dataset_name=str(rows), dataset_split=f"train[:{taken}]", max_length=flags["max_length"],
        val_size=held_out, effective_batch=batch, max_steps=steps, eval_steps=steps, learning_rate=5e-4,
        token_budget=BUDGET, recompute=0, engine=flags["engine"], device="cpu", precision="fp32",
        quantization=flags["quantization"],
    )  # fmt: skip
    return parity.make_task(config, detect.detect_machine())


def base_bytes(engine: Any) -> int:
    """Return the bytes of the frozen base weights in memory, including the scales of quantized weights."""
    if "mlx.core" in sys.modules:
        learnt = [*engine.params.values(), *(a for part in engine.optimizer.moments.values() for a in part.values())]
        return int(sys.modules["mlx.core"].get_active_memory()) - sum(array.nbytes for array in learnt)
    frozen = [p for p in engine.model.parameters() if not p.requires_grad]
    scales = [t for p in frozen if hasattr(p, "quant_state") for t in p.quant_state.as_dict(packed=True).values()]
    scales += [p.SCB for p in frozen if getattr(p, "SCB", None) is not None]
    held = {tensor.data_ptr(): tensor.nbytes for tensor in [*frozen, *scales]}  # a tied head counts once
    return sum(held.values())


def train_and_measure(engine: Engine, task: parity.Task, adapter: Path) -> dict[str, Any]:
    """Train, save the adapter to `adapter`, and return base bytes, peak bytes, validation losses, seconds per step."""
    weights = base_bytes(engine)
    before = parity.held_out_loss(engine, task)
    began = time.perf_counter()
    parity.learn(engine, task, range(1, task.plan.steps + 1))
    seconds = (time.perf_counter() - began) / task.plan.steps
    after = parity.held_out_loss(engine, task)
    peak = process_peak_bytes()
    engine.save_adapter(adapter)
    return {"base_bytes": weights, "peak_bytes": peak, "before": before, "after": after, "step_seconds": seconds}


def main() -> None:
    """Print the figures as one line of JSON; with `only_open`, open the engine and print an empty object."""
    flags = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    task = task_of(flags)
    allocator.set_profile(task.plan.allocator)
    engine = parity.open_engine(task, task.plan.engine, task.plan.device)
    found = {} if flags["only_open"] else train_and_measure(engine, task, Path(flags["adapter"]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
