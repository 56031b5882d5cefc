"""How fast and how lean is our MLX engine beside mlx_lm's trainer, and its model in a careful loop? On this device.

    python benchmarks/mlx_speed.py [--quick] [--json FILE] [--device cpu|mps]

The same demo model in float32, rows of law, effective batch, loss and OpenBLAS for all; each a process of its own, one
step a round in turn, so that a busy machine is busy for all. Peak memory is MLX's own counter. Flat JSON: `ok` and, as
times ours, `vs_lora` and `vs_loop` (target tokens a second), `peak_vs_lora`, `lean_vs_lora`, `lean_peak_vs_lora`.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from lorafit.demo import demo_model
from lorafit.modelspec import read_spec
from peers.protocol import Task
from race.contestants import Contestant
from race.heats import Race, race
from race.results import Line, of_run, read
from race.task import make_rows, step_flops

OURS, LEAN, LORA, LOOP = "lorafit mlx", "lorafit mlx lean", "mlx_lm.lora", "mlx_lm loop"
CONTESTANTS = [
    Contestant(OURS, "lorafit_own", {"engine": "mlx", "token_budget": 1024, "recompute": 0}, needs="mlx_lm"),
    Contestant(LEAN, "lorafit_own", {"engine": "mlx", "token_budget": 512, "recompute": 999}, needs="mlx_lm"),
    Contestant(LORA, "mlx_lm_lora", needs="mlx_lm"),
    Contestant(LOOP, "mlx_lm_loop", needs="mlx_lm"),
]
ROUNDS, SAMPLES, QUICK_SAMPLES = 3, 16, 8
LORA_R, LORA_ALPHA, LEARNING_RATE = 32, 64.0, 1e-4
# What is to be reached (target tokens a second, and peak memory, of ours over theirs).
WANTED = {"vs_lora": 1.5, "vs_loop": 1.35}
MOST_PEAK = 0.6
SAME_LOSS = 1e-3  # of the first step's mean loss
RESULTS = Path(__file__).parent / "results" / "mlx_speed.jsonl"


def verdict(lines: list[Line]) -> dict[str, Any]:
    """Ratios within a round, their medians."""
    rounds: dict[str, dict[int, Line]] = {}
    for line in (line for line in lines if "seconds" in line):
        rounds.setdefault(line["contestant"], {})[line["round"]] = line
    absent = [c.name for c in CONTESTANTS if not any(rounds.get(c.name, {}))]
    if absent:
        return {"ok": False, "absent": ", ".join(absent)}

    def faster(one: str, other: str) -> float:
        both = [n for n in rounds[one] if n > 0 and n in rounds[other]]
        return median(rounds[other][n]["seconds"] / rounds[one][n]["seconds"] for n in both)

    def peak(name: str) -> int:
        return max(line["peak_bytes"] for line in rounds[name].values())

    losses = [rounds[c.name][0]["loss"] for c in CONTESTANTS]
    targets = {n: line["targets"] / line["seconds"] for n, line in rounds[OURS].items() if n > 0}
    found = {
        "same_loss": max(losses) / min(losses) - 1 < SAME_LOSS,
        "targets_per_second": median(targets.values()),
        "vs_lora": faster(OURS, LORA),
        "vs_loop": faster(OURS, LOOP),
        "lean_vs_lora": faster(LEAN, LORA),
        "peak_bytes": peak(OURS),
        "peak_vs_lora": peak(OURS) / peak(LORA),
        "lean_peak_vs_lora": peak(LEAN) / peak(LORA),
        "rounds": len(targets),
    }
    reached = all(found[name] >= least for name, least in WANTED.items()) and found["peak_vs_lora"] <= MOST_PEAK
    return {"ok": bool(found["same_loss"] and reached), **found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"one round of {QUICK_SAMPLES} samples")
    parser.add_argument("--json", type=Path, help="write the verdict here")
    parser.add_argument("--device", choices=("cpu", "mps"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()
    model, batch, rounds = demo_model(), QUICK_SAMPLES if flags.quick else SAMPLES, 1 if flags.quick else ROUNDS
    spec, rows = read_spec(model), make_rows("legal", 0, rounds + 1, batch, None)
    run = f"{platform.node()} {time.strftime('%Y-%m-%dT%H:%M:%S')}"
    with tempfile.TemporaryDirectory(prefix="lorafit-race-") as scratch:
        samples = Path(scratch) / "samples.npz"
        rows.save(samples)
        task = Task(str(model), str(samples), rows.steps, flags.device, flags.threads, rows.max_length, LORA_R, LORA_ALPHA,
                    LEARNING_RATE, (1024, spec.hidden, spec.intermediate))  # fmt: skip
        flops = [step_flops(spec, rows, step, LORA_R) for step in range(len(rows.steps))]
        race(Race(run, task, rows, flops, rounds, RESULTS, Path(scratch), say), CONTESTANTS)
    found = verdict(of_run(read(RESULTS), run))
    print(json.dumps(found))
    if flags.json:
        flags.json.write_text(json.dumps(found) + "\n", "utf-8")
    return 0 if found["ok"] else 1


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
