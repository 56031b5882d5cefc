"""Speed and memory of lorafit beside other trainers: same model, data, batch, loss, threads and precision, interleaved.

    python benchmarks/speed.py [--quick] [--json FILE]
    python benchmarks/speed.py --rows uncut --rounds 2
    python benchmarks/speed.py --system 300 --only "trl packing" "lf tuned"
    python benchmarks/speed.py --shape llama-3.2-1b --samples 4

Every contestant is a process of its own that loads once and takes one step per round. Finished rounds are kept in
benchmarks/results/; the same command resumes an interrupted race. `python benchmarks/page.py` writes docs/benchmarks.md
from the results.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lorafit.data.tokenize import usable_cores
from lorafit.models.demo import demo_model
from lorafit.models.spec import ModelSpec, read_spec
from peers.protocol import Task
from race import environment, figures
from race.about import machine_facts
from race.contestants import REFERENCE, Contestant, chosen
from race.heats import Race, race
from race.results import RESULTS, append, of_run, read
from race.shapes import SHAPES, shape_folder
from race.task import LENGTHS, Rows, make_rows, step_flops

ROUNDS, SAMPLES, QUICK_SAMPLES = 3, 16, 4
LORA_R, LORA_ALPHA, LEARNING_RATE = 32, 64.0, 1e-4


def read_flags() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four contestants, 4 samples a step: about ten minutes")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--rows", choices=LENGTHS, default="legal", help="as long as for Llama-3's tokenizer, or uncut")
    parser.add_argument("--system", type=int, default=0, help="tokens of a system prompt before every row")
    parser.add_argument("--data", type=Path, help="rows of your own (JSON or JSONL with instruction and output)")
    parser.add_argument("--model", type=Path, help="folder of a base model (default: the demo model)")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead")
    parser.add_argument("--samples", type=int, help=f"a step (default {SAMPLES}; quick {QUICK_SAMPLES})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="measured steps of each, after one that warms up")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--device", choices=("cpu", "mps", "cuda"), default="cpu")
    parser.add_argument("--only", nargs="+", default=[], help="these contestants, and the reference")
    parser.add_argument("--reference", default=REFERENCE, help="whom all are compared with")
    parser.add_argument("--again", action="store_true", help="measure anew what is finished already")
    parser.add_argument("--note", default="", help="words about the circumstances, shown with the figures")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where lines are appended")
    return parser.parse_args()


def model_folder(flags: argparse.Namespace) -> Path:
    """Return the folder of the base model that the flags choose."""
    if flags.shape:
        return shape_folder(flags.shape)
    return flags.model.absolute() if flags.model else demo_model()


def about(flags: argparse.Namespace, model: Path, rows: Rows, names: list[str]) -> dict[str, Any]:
    """Return all facts that influence the figures: another machine, version or setting makes another run."""
    settings = {key: getattr(flags, key) for key in ("quick", "rows", "rounds", "threads", "device", "note")}
    facts = {"model": model.name, "data": rows.source, "samples": len(rows.steps[0]), "contestants": names}
    return {**settings, **facts, "system_prompt": flags.system, **machine_facts()}


def available_contestants(flags: argparse.Namespace) -> list[Contestant]:
    """Return the contestants of this race, and build their environments, except with --quick.

    A contestant that cannot run is left out with a message if --quick is given or if it supports CUDA only.
    """
    able = []
    for contestant in chosen(flags.device, flags.quick, flags.only, flags.reference):
        if contestant.environment and not flags.quick:
            try:
                environment.build(contestant.environment)
            except subprocess.CalledProcessError as error:
                print(f"{contestant.environment}: {error}", file=sys.stderr)
        why = contestant.absent()
        if why is None or not (flags.quick or contestant.devices == ("cuda",)):
            able.append(contestant)  # if it cannot run, it fails, and the figures report that
        else:
            print(f"Left out: {contestant.name}: {why}", file=sys.stderr)
    return able


def start_run(flags: argparse.Namespace, facts: dict[str, Any]) -> str:
    """Return the name of the run with these facts; write the facts if the run is new."""
    lines = read(flags.results)
    same = [line["run"] for line in lines if line.get("about") == facts]
    if same and not flags.again:
        return str(same[-1])
    run = hashlib.sha256(json.dumps([facts, len(same)]).encode()).hexdigest()[:10]
    append(flags.results, {"run": run, "about": facts})
    return run


def make_task(flags: argparse.Namespace, model: Path, spec: ModelSpec, rows: Rows, samples: Path) -> Task:
    """Return the task that all contestants share."""
    gemm = (1024, spec.hidden, spec.intermediate)
    common = {"device": flags.device, "threads": flags.threads, "max_length": rows.max_length}
    lora = {"lora_r": LORA_R, "lora_alpha": LORA_ALPHA, "learning_rate": LEARNING_RATE}
    return Task(str(model), str(samples), rows.steps, gemm=gemm, **common, **lora)


def main() -> None:
    """Run the race, print a table and the flat figures, and write the figures to --json."""
    flags = read_flags()
    batch = flags.samples or (QUICK_SAMPLES if flags.quick else SAMPLES)
    model = model_folder(flags)
    spec = read_spec(model)
    rows = make_rows(flags.rows, flags.system, flags.rounds + 1, batch, flags.data)
    contestants = available_contestants(flags)
    names = [contestant.name for contestant in contestants]
    run = start_run(flags, about(flags, model, rows, names))
    with tempfile.TemporaryDirectory(prefix="lorafit-race-") as scratch:
        samples = Path(scratch) / "samples.npz"
        rows.save(samples)
        task = make_task(flags, model, spec, rows, samples)
        flops = [step_flops(spec, rows, step, LORA_R) for step in range(len(rows.steps))]
        race(Race(run, task, rows, flops, flags.rounds, flags.results, Path(scratch), say), contestants)
    lines = of_run(read(flags.results), run)
    for row in figures.table(lines):
        print("  ".join(f"{cell:>15}" for cell in row))
    found = figures.flat(lines, names, flags.rounds)
    print(json.dumps(found, ensure_ascii=False))
    if flags.json:
        flags.json.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", "utf-8")


def say(text: str) -> None:
    """Print a progress message to stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
