"""Parity of all engines: one run with one seed on every engine and device of this machine, compared step by step.

    python benchmarks/parity.py [--quick] [--json FILE]

The demo model trains on the demo's rows, in float32. PyTorch on the CPU is the reference. A last run moves from PyTorch
to MLX at a third of the steps, and back at two thirds. The script rewrites docs/parity.md: new figures replace those of
a machine of the same name, and the columns of other machines stay.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from ending import report_figures
from lorafit import registry
from lorafit.config import TrainConfig
from lorafit.data.batching import build_step_batch
from lorafit.data.dataset import PreparedData, prepare
from lorafit.data.sources import read_rows
from lorafit.engines.base import Engine, Setup
from lorafit.engines.tokenizer import load_tokenizer
from lorafit.hardware import detect
from lorafit.hardware.detect import Machine
from lorafit.models.demo import demo_model
from lorafit.models.spec import read_spec
from lorafit.planner.plan import Plan
from lorafit.planner.planner import DataStats, make_plan
from lorafit.planner.schedule import lr_at, step_samples
from lorafit.run_folders.adapter import read_adapter

DOCS = Path(__file__).parents[1] / "docs"
PAGE, PICTURE, NUMBERS = DOCS / "parity.md", DOCS / "parity.png", DOCS / "parity.json"
STEPS, QUICK_STEPS, BATCH, HELD_OUT, MAX_LENGTH, SEED = 50, 6, 2, 20, 128, 42
# Bounds: rounding differs by engine, and Adam magnifies the difference where a gradient is nearly zero.
MOST_LOSS, MOST_B, MOST_HELD_OUT = 1e-3, 2e-2, 1e-3
REFERENCE = ("torch", "cpu")
ARROW = " → "  # joins the engine names of the run that moves


@dataclass(frozen=True)
class Run:
    """The figures of one run on one engine and device.

    Losses are means per target token; `held_out` is the validation loss. `b_norm_rel` is the distance of lora_B from
    the reference's, relative by norm.
    """

    machine: str
    engine: str
    device: str
    steps: int
    losses: list[float]
    held_out: float
    max_rel_loss: float
    b_norm_rel: float
    measured: str  # date

    @property
    def name(self) -> str:
        """Return engine and device as text."""
        return f"{self.engine}, {self.device}"


@dataclass(frozen=True)
class Task:
    """The run that all engines compute."""

    folder: Path
    data: PreparedData
    plan: Plan


def ways(machine: Machine) -> Iterator[tuple[str, str]]:
    """Yield the engines and devices of this machine, the reference first."""
    yield REFERENCE
    yield from (("torch", gpu.kind) for gpu in machine.gpus if gpu.kind != "cuda" or machine.torch_cuda)
    if all(importlib.util.find_spec(name) for name in ("mlx", "mlx_lm")):
        yield "mlx", "cpu"
        yield from (("mlx", gpu.kind) for gpu in machine.gpus if gpu.kind == "mps")


def settings(steps: int) -> TrainConfig:
    """Return the config of a run of `steps` steps."""
    return TrainConfig(
        model_name="demo", dataset_name="demo", max_length=MAX_LENGTH, val_size=HELD_OUT, effective_batch=BATCH, seed=SEED,
        max_steps=steps, learning_rate=5e-4, lora_r=16, lora_alpha=32.0, engine="torch", device="cpu", precision="fp32",
        token_budget=512, eval_steps=steps,
    )  # fmt: skip


def make_task(config: TrainConfig, machine: Machine) -> Task:
    """Return the task of `config`, with the demo model."""
    folder = demo_model()
    data = prepare(list(read_rows(config.dataset_name, config.dataset_split)), load_tokenizer(folder), config)
    facts = DataStats(data.train.lengths, data.valid.lengths, data.digest)
    return Task(folder, data, make_plan(config, machine, read_spec(folder), facts))


def open_engine(task: Task, engine: str, device: str) -> Engine:
    """Return `engine` on `device` with the demo model loaded."""
    plan = replace(task.plan, engine=engine, device=device)
    setup = Setup(task.folder, "demo", device, plan.precision, plan.quantization, plan=plan)
    opened: Engine = registry.load(registry.ENGINES[engine]).open(setup)
    return opened


def learn(engine: Engine, task: Task, steps: range) -> list[float]:
    """Train these steps and return the mean loss of each."""
    losses, plan = [], task.plan
    for step in steps:
        data = build_step_batch(task.data.train, step_samples(plan, step), plan.token_budget, plan.max_micro_batch)
        result = engine.step(step, data.micro_batches, data.num_targets, lr_at(step, plan))
        losses.append(result.loss_sum / data.num_targets)
        print(f"  step {step}/{plan.steps}  loss {losses[-1]:.5f}", flush=True)
    return losses


def held_out_loss(engine: Engine, task: Task) -> float:
    """Return the mean loss over the validation set."""
    held_out = build_step_batch(
        task.data.valid, range(len(task.data.valid)), task.plan.token_budget, task.plan.max_micro_batch
    )
    return engine.evaluate(held_out.micro_batches).mean


def finish(engine: Engine, task: Task) -> tuple[float, dict[str, Any]]:
    """Return the validation loss, and all lora_B in float64."""
    loss = held_out_loss(engine, task)
    with tempfile.TemporaryDirectory() as scratch:
        engine.save_adapter(Path(scratch))
        weights = read_adapter(Path(scratch))[1]
    return loss, {name: array.astype(np.float64) for name, array in weights.items() if ".lora_B." in name}


def train_in_legs(task: Task, legs: list[tuple[str, str]]) -> tuple[list[float], float, dict[str, Any]]:
    """Compute the run with an equal share of its steps on each of `legs`, carried over by a checkpoint.

    Return the losses, the validation loss at the end, and all lora_B.
    """
    ends = [round(task.plan.steps * i / len(legs)) for i in range(len(legs) + 1)]
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, (engine_name, device) in enumerate(legs):
            engine = open_engine(task, engine_name, device)
            if number:
                engine.load(Path(scratch))
            losses += learn(engine, task, range(ends[number] + 1, ends[number + 1] + 1))
            engine.save(Path(scratch))
        return losses, *finish(engine, task)


def distance(found: dict[str, Any], wanted: dict[str, Any]) -> float:
    """Return the norm of the difference of all matrices, over their norm in `wanted`."""
    off = sum(float(np.sum((found[name] - wanted[name]) ** 2)) for name in wanted)
    return float((off / sum(float(np.sum(array**2)) for array in wanted.values())) ** 0.5)


def measure(task: Task, machine: Machine) -> list[Run]:
    """Run every engine and device, then the run that moves between engines if MLX is present."""
    runs: list[Run] = []
    wanted: dict[str, Any] = {}
    journeys = [[way] for way in ways(machine)]
    if ("mlx", "cpu") in [way for (way,) in journeys]:
        journeys.append([REFERENCE, ("mlx", "cpu"), REFERENCE])
    for legs in journeys:
        engine, device = (ARROW.join(part) if len(part) > 1 else part[0] for part in zip(*legs, strict=True))
        print(f"{engine} on {device}", flush=True)
        losses, held_out, b = train_in_legs(task, legs)
        wanted = wanted or b
        first = runs[0].losses if runs else losses
        off = max(abs(found / right - 1) for found, right in zip(losses, first, strict=True))
        place = "cpu" if len(legs) > 1 else device
        runs.append(Run(machine.chip, engine, place, task.plan.steps, losses, held_out, off, distance(b, wanted),
                        date.today().isoformat()))  # fmt: skip
    return runs


def verdict(runs: list[Run]) -> dict[str, Any]:
    """Return flat figures; `ok` if all runs stayed within the bounds and there are at least two.

    `moved_rel`, the relative error of the validation loss of the run that moved, is None without MLX.
    """
    reference = runs[0]
    max_rel_loss, b_norm_rel = (max(getattr(run, name) for run in runs) for name in ("max_rel_loss", "b_norm_rel"))
    off = {run.name: abs(run.held_out / reference.held_out - 1) for run in runs}
    moved_rel = max((off[run.name] for run in runs if ARROW in run.engine), default=None)
    held_out = max(off.values())
    ok = max_rel_loss <= MOST_LOSS and b_norm_rel <= MOST_B and held_out <= MOST_HELD_OUT and len(runs) > 1
    return {"ok": ok, "steps": reference.steps, "max_rel_loss": max_rel_loss, "b_norm_rel": b_norm_rel,
            "held_out_rel": held_out, "moved_rel": moved_rel, "ways": len(runs)}  # fmt: skip


def merge_results(runs: list[Run]) -> list[Run]:
    """Replace this machine's former runs by `runs` in the file, and return the runs of all machines."""
    old = [Run(**facts) for facts in json.loads(NUMBERS.read_text("utf-8"))] if NUMBERS.is_file() else []
    kept = [run for run in old if run.machine != runs[0].machine] + runs
    NUMBERS.write_text(json.dumps([asdict(run) for run in kept], ensure_ascii=False, indent=1) + "\n", "utf-8")
    return kept


def page(runs: list[Run]) -> str:
    """Return the Markdown page of `runs`."""
    shown = sorted({1, 2, 5, 10, 20, 30, 40, runs[0].steps})
    columns = [f"{run.name}<br>{run.machine}" for run in runs]
    rows = [["", *columns], ["---"] + ["---:"] * len(runs)]
    rows += [
        [f"loss of step {step}", *(f"{run.losses[step - 1]:.6f}" for run in runs)]
        for step in shown
        if step <= runs[0].steps
    ]
    rows.append(["validation loss at the end", *(f"{run.held_out:.6f}" for run in runs)])
    rows.append(["largest difference of a loss", *(f"{run.max_rel_loss:.1e}" for run in runs)])
    rows.append(["‖ΔB‖ / ‖B‖ at the end", *(f"{run.b_norm_rel:.1e}" for run in runs)])
    rows.append(["measured", *(run.measured for run in runs)])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return HEAD.format(
        steps=runs[0].steps, batch=BATCH, length=MAX_LENGTH, loss=MOST_LOSS, b=MOST_B, held=MOST_HELD_OUT, table=table
    )


HEAD = """# Parity: every engine trains the same

`python benchmarks/parity.py` writes this page. It takes about ten minutes and downloads only the demo model. On another
machine it adds columns. `parity.json` beside this page has all numbers.

The demo model trains on the demo's rows in float32, with one seed. Differences are relative to PyTorch on the CPU of the
same machine. `torch → mlx → torch` moved twice between the engines, by checkpoints.

| setting | value |
|---|---:|
| steps | {steps} |
| samples per step | {batch} |
| tokens per sample, at most | {length} |

| difference from PyTorch | limit |
|---|---:|
| losses | {loss:g} |
| adapter (lora_B), by norm | {b:g} |
| validation loss at the end | {held:g} |

{table}

![Loss by step, and its difference from the first column](parity.png)
"""


def draw(runs: list[Run]) -> None:
    """Draw the loss of each run, and its difference from the first run of the same machine."""
    from matplotlib import pyplot as plt  # a development dependency

    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=[2, 1])
    for place, run in enumerate(runs):
        steps, first = range(1, run.steps + 1), next(r for r in runs if r.machine == run.machine)
        width = 1.2 + 1.5 * (len(runs) - 1 - place)  # the curves overlap, so earlier ones are wider
        (line,) = above.plot(steps, run.losses, label=f"{run.name}, {run.machine}", lw=width)
        if run is not first:
            off = [abs(a / b - 1) + 1e-9 for a, b in zip(run.losses, first.losses, strict=True)]
            below.semilogy(steps, off, lw=1.2, color=line.get_color())
    above.set_ylabel("loss")
    below.set_ylabel("difference")
    below.set_xlabel("step")
    above.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


def main() -> int:
    """Run the benchmark and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, and the page stays as it is")
    parser.add_argument("--json", type=Path, help="write the verdict here")
    arguments = parser.parse_args()
    machine = detect.detect_machine()
    task = make_task(settings(QUICK_STEPS if arguments.quick else STEPS), machine)
    runs = measure(task, machine)
    if not arguments.quick:
        kept = merge_results(runs)
        draw(kept)
        PAGE.write_text(page(kept), "utf-8")
    found = verdict(runs)
    return report_figures(found, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
