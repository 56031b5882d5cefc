"""Speed and memory of lorafit's MLX engine beside mlx_lm's trainer, and beside a careful loop over mlx_lm's model.

    python benchmarks/mlx_speed.py [--quick] [--json FILE] [--device cpu|mps]

All use the same demo model in float32, legal rows, effective batch, loss and OpenBLAS. Each is a process of its own and
takes one step per round in turn, so that load on the machine affects all alike. mlx_lm's trainer runs twice: with its
step compiled (its default) and without. The faster run counts, and the smaller of the two peaks. Peak memory is MLX's
own counter; `resident` is the process's. Flat JSON: `ok`, and the ratios of lorafit to mlx_lm: `vs_lora` and `vs_loop`
(target tokens per second), `peak_vs_lora`, `lean_vs_lora`, `lean_peak_vs_lora`. `python benchmarks/page.py` puts the
table into docs/benchmarks.md.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ending import report_figures
from lorafit.models.demo import demo_model
from lorafit.models.spec import read_spec
from peers.protocol import Task
from race.about import machine_facts
from race.contestants import Contestant
from race.figures import entries, faults
from race.heats import Race, race
from race.results import MLX, Line, append, of_run, read
from race.task import make_rows, step_flops

OURS, LEAN, LOOP = "lorafit mlx", "lorafit mlx lean", "mlx_lm loop"
THEIRS = LORA, EAGER = "mlx_lm.lora", "mlx_lm.lora eager"
CONTESTANTS = [
    Contestant(OURS, "lorafit_own", {"engine": "mlx", "token_budget": 1024, "recompute": 0}, needs="mlx_lm"),
    Contestant(LEAN, "lorafit_own", {"engine": "mlx", "token_budget": 512, "recompute": 999}, needs="mlx_lm"),
    Contestant(LORA, "mlx_lm_lora", needs="mlx_lm"),
    Contestant(EAGER, "mlx_lm_lora", {"compile": False}, needs="mlx_lm"),
    Contestant(LOOP, "mlx_lm_loop", needs="mlx_lm"),
]
ROUNDS, SAMPLES, QUICK_SAMPLES = 3, 16, 8
LORA_R, LORA_ALPHA, LEARNING_RATE = 32, 64.0, 1e-4
# Goals, lorafit over mlx_lm: least ratios of target tokens per second, highest ratios of peak memory.
LEAST_RATIOS = {"vs_lora": 1.5, "vs_loop": 1.35, "lean_vs_lora": 1.0}
MOST_RATIOS = {"peak_vs_lora": 0.6, "lean_peak_vs_lora": 0.25}


def verdict(lines: list[Line], rounds: int) -> dict[str, Any]:
    """Return the flat verdict from medians of ratios within the same heat and round (race/figures.py).

    If a contestant has no finished round, the verdict has only `ok` and `why`.
    """
    names = [contestant.name for contestant in CONTESTANTS]
    of = {entry.name: entry for entry in entries(lines)}
    if len(of) < len(names):
        return {"ok": False, "why": "; ".join(faults(lines, names, rounds))}
    resident = {name: max(line["resident_bytes"] for line in lines if _is_step(line, name)) for name in names}
    lora = min(of[name].behind for name in THEIRS)
    peak, most = min(of[name].peak_bytes for name in THEIRS), min(resident[name] for name in THEIRS)
    found = {
        "targets_per_second": of[OURS].targets_per_second,
        "vs_lora": lora,
        "vs_loop": of[LOOP].behind,
        "lean_vs_lora": lora / of[LEAN].behind,
        "peak_bytes": of[OURS].peak_bytes,
        "peak_vs_lora": of[OURS].peak_bytes / peak,
        "lean_peak_vs_lora": of[LEAN].peak_bytes / peak,
        "resident_vs_lora": resident[OURS] / most,
        "lean_resident_vs_lora": resident[LEAN] / most,
        "rounds": of[OURS].rounds,
        "why": "; ".join(faults(lines, names, rounds)),
    }
    fast = all(found[name] >= least for name, least in LEAST_RATIOS.items())
    small = all(found[name] <= limit for name, limit in MOST_RATIOS.items())
    return {"ok": fast and small and not found["why"], **found}


def _is_step(line: Line, name: str) -> bool:
    return line.get("contestant") == name and "seconds" in line


def main() -> int:
    """Run the benchmark and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"one round of {QUICK_SAMPLES} samples")
    parser.add_argument("--json", type=Path, help="write the verdict here")
    parser.add_argument("--device", choices=("cpu", "mps"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="words about the circumstances, shown with the figures")
    flags = parser.parse_args()
    model, batch, rounds = demo_model(), QUICK_SAMPLES if flags.quick else SAMPLES, 1 if flags.quick else ROUNDS
    spec, rows = read_spec(model), make_rows("legal", 0, rounds + 1, batch, None)
    run = time.strftime("mlx-%Y-%m-%dT%H-%M-%S")  # also part of the picture's file name
    about = {"model": f"MLX, {model.name}", "data": rows.source, "samples": batch, "rows": "legal", "system_prompt": 0,
             "rounds": rounds, "threads": flags.threads, "device": flags.device, "note": flags.note,
             "contestants": [contestant.name for contestant in CONTESTANTS], **machine_facts()}  # fmt: skip
    append(MLX, {"run": run, "about": about})
    with tempfile.TemporaryDirectory(prefix="lorafit-race-") as scratch:
        samples = Path(scratch) / "samples.npz"
        rows.save(samples)
        task = Task(str(model), str(samples), rows.steps, flags.device, flags.threads, rows.max_length, LORA_R, LORA_ALPHA,
                    LEARNING_RATE, (1024, spec.hidden, spec.intermediate))  # fmt: skip
        flops = [step_flops(spec, rows, step, LORA_R) for step in range(len(rows.steps))]
        race(Race(run, task, rows, flops, rounds, MLX, Path(scratch), say), CONTESTANTS)
    found = verdict(of_run(read(MLX), run), rounds)
    return report_figures(found, flags.json)


def say(text: str) -> None:
    """Print a progress message to stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
