"""Predicted and measured figures of one configuration, trained for real in this process; one JSON line at the end.

`python -m accuracy.child CONFIGURATION.json`: the worker's normal path from rows to the last step, without stand-ins.
"""

import json
import math
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accuracy.configurations import Configuration
from lorafit.config import TrainConfig
from lorafit.data.micro_batch import MicroBatch
from lorafit.engines.base import Engine, Probe
from lorafit.errors import LorafitError
from lorafit.events import Finished, Rehearsed, StepDone
from lorafit.hardware import detect
from lorafit.models.spec import read_spec
from lorafit.planner import calibrate
from lorafit.planner.calibrate import MATMUL_SIZE, measure_matmul_gflops
from lorafit.planner.plan import Plan
from lorafit.training import worker
from lorafit.units import GIB
from race.shapes import shape_folder

TIMED_MATMULS = 10  # matmuls of MATMUL_SIZE x MATMUL_SIZE, timed after each step
WORDS = [
    "法院",
    "合同",
    "当事人",
    "应当",
    "依照",
    "规定",
    "赔偿",
    "责任",
    "证据",
    "诉讼",
    "期限",
    "约定",
    "the",
    "party",
    "shall",
    "within",
    "thirty",
    "days",
    "pay",
]
WORD_TOKENS = 3.5  # per word, with the demo model's tokenizer


def main(path: str) -> int:
    """Train the configuration in the file `path` and print its figures as one JSON line."""
    wanted = Configuration(**json.loads(Path(path).read_text("utf-8")))
    reset_peak()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure_configuration(wanted, Path(folder))), flush=True)
    return 0


def reset_peak() -> None:
    """Reset VmHWM, the peak resident memory of this process (proc(5), clear_refs: 5)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Return VmHWM, the peak resident memory of this process, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measure_configuration(wanted: Configuration, folder: Path) -> dict[str, Any]:
    """Train one configuration in `folder` and return its predicted and measured figures, or its error."""
    config = settings(wanted, folder)
    if wanted.limit_gib is not None:
        limit = wanted.limit_gib * GIB
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    facts: dict[str, Any] = {**wanted.facts(), "began": time.time()}
    steps: list[tuple[float, float]] = []  # seconds, and GFLOP/s of a matmul timed after it
    began = beside = 0.0
    ruler = torch_gflops if wanted.kind == "run" else measure_matmul_gflops  # else the planner's own matmul
    probes: list[tuple[float, float]] = []
    worker.run_probe = with_matmul_timing(worker.run_probe, ruler, probes)
    try:
        for event in worker.train_in_process(config):
            came = time.perf_counter()
            if isinstance(event, StepDone):
                steps.append((event.seconds, ruler()))
            if isinstance(event, Rehearsed):
                facts |= {
                    "predicted_seconds": event.expected_seconds,
                    "rehearsed_gflops": statistics.median(gflops for _seconds, gflops in probes[1:] or probes),
                }
                began = time.perf_counter()
            elif isinstance(event, Finished):
                facts["whole_seconds"] = came - began - beside
            else:
                beside += (time.perf_counter() - came) * bool(began)
    except LorafitError as error:
        return {**facts, "error": error.what, "found": error.found, "fix": error.fix}
    facts["plan_gflops"] = calibrate.load_calibration(detect.detect_machine()).core_gflops
    run = next((folder / "output").iterdir())
    plan = Plan.load(run / "plan.json")
    return facts | {
        "peak_bytes": peak_bytes(),
        "predicted_bytes": plan.predicted_peak_bytes,
        "terms": plan.memory_terms,
        "step_seconds": [seconds for seconds, _gflops in steps],
        "step_gflops": [gflops for _seconds, gflops in steps],
        "predicted_step_seconds": plan.predicted_step_seconds,
        "planned": {name: getattr(plan, name) for name in ("precision", "quantization", "token_budget", "recompute", "allocator")},
        "path": next((choice.value for choice in plan.choices if choice.setting == "path"), ""),
        "tokens_per_step": plan.predicted_tokens_per_second * plan.predicted_step_seconds,
    }  # fmt: skip


def with_matmul_timing(
    rehearse: Callable[..., Any], ruler: Callable[[], float], found: list[tuple[float, float]]
) -> Callable[..., Any]:
    """Wrap `run_probe`: for every pass, `found` gets its seconds and the GFLOP/s of a matmul timed after it."""

    def rehearsed(engine: Engine, *about: object) -> Any:
        probe = engine.probe

        def with_product(micro_batch: MicroBatch) -> Probe:
            done = probe(micro_batch)
            found.append((done.seconds, ruler()))
            return done

        engine.probe = with_product  # type: ignore[method-assign]
        return rehearse(engine, *about)

    return rehearsed


def torch_gflops() -> float:
    """Return the mean float32 GFLOP/s of TIMED_MATMULS matmuls; the best of them could miss a load that comes and goes.

    PyTorch's own threads are used: numpy's busy-wait after a matmul, and slow the next step by 4 to 8%.
    """
    import torch  # the run has imported it by now

    side = torch.ones(MATMUL_SIZE, MATMUL_SIZE)
    began = time.perf_counter()
    for _product in range(TIMED_MATMULS):
        torch.mm(side, side)
    return TIMED_MATMULS * 2 * MATMUL_SIZE**3 / (time.perf_counter() - began) / 1e9


def settings(wanted: Configuration, folder: Path) -> TrainConfig:
    """Write the rows of one configuration and return its config.

    A step has as many rows of the longest length as fit in the token budget. All rows are truncated to that length,
    except in a whole run, which has mixed lengths.
    """
    model = "demo" if wanted.model == "demo" else str(shape_folder(wanted.model))
    budget = wanted.token_budget or wanted.longest * (2 if wanted.kind == "run" else 1)
    rows = max(1, budget // wanted.longest)
    write_rows(folder / "rows.jsonl", 4 * rows, wanted.longest, mixed=wanted.kind == "run")
    layers = None if model == "demo" else read_spec(Path(model)).layers
    recompute = None if wanted.recompute is None else math.ceil(wanted.recompute * (layers or 30))
    return TrainConfig.model_validate(
        {
            "model_name": model, "dataset_name": str(folder / "rows.jsonl"), "val_size": 0, "max_length": wanted.longest,
            "max_steps": wanted.max_steps, "effective_batch": rows, "precision": wanted.precision,
            "quantization": wanted.quantization, "token_budget": wanted.token_budget, "recompute": recompute,
            "lora_r": wanted.lora_r, "allocator": wanted.allocator, "device": "cpu", "output_dir": str(folder / "output"),
            "no_preflight": wanted.kind == "steps", "max_rejects": 1.0,
        }
    )  # fmt: skip


def write_rows(path: Path, rows: int, longest: int, mixed: bool) -> None:
    """Write rows of words, different from the first token on: all longer than `longest` tokens, or of mixed lengths."""
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows * (8 if mixed else 1)):
            share = 0.2 + 0.8 * (row * 0.618 % 1) if mixed else 4.0
            count = max(8, int(longest * share / WORD_TOKENS))
            words = [WORDS[(row * 7 + place * (3 + row % 5)) % len(WORDS)] for place in range(count)]
            text = {"instruction": f"{row} " + " ".join(words[: count // 3]), "output": " ".join(words[count // 3 :])}
            file.write(json.dumps(text, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
