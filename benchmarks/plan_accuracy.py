"""Accuracy of the plan: predicted against measured memory and time, with one process per configuration.

    python benchmarks/plan_accuracy.py [--quick] [--json FILE]    memory without preflight: 42 configurations, 12 with --quick
    python benchmarks/plan_accuracy.py --runs                     five whole runs after preflight: time and memory
    python benchmarks/plan_accuracy.py --limits                   the planner under limits of 3 to 12 GiB (RLIMIT_DATA)
    python benchmarks/plan_accuracy.py --published                what others measured beside what the plan says
    python benchmarks/plan_accuracy.py --constants                what would fit the constants of lorafit/planner/memory.py
    python benchmarks/plan_accuracy.py --predict                  what is finished beside what the formulas say now

The peak is the process's VmHWM, reset by /proc/self/clear_refs. Finished measurements are kept in benchmarks/results/;
`--resume` continues an interrupted benchmark. The script writes the tables of docs/memory-model.md and
docs/speed-model.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from accuracy import child, configurations, figures, pages, published
from accuracy.configurations import Configuration
from accuracy.figures import Row
from ending import report_figures
from lorafit.planner import calibrate
from lorafit.training.preview import preview_run
from lorafit.units import bytes_text

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "plan_accuracy.jsonl"
SECONDS = 3600.0  # limit for one configuration
FEWEST, FEWEST_QUICK = 40, 12


def read_flags() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small models only: about ten minutes")
    parser.add_argument("--runs", action="store_true", help="whole runs after preflight")
    parser.add_argument("--limits", action="store_true", help="the planner under limits of memory")
    parser.add_argument("--published", action="store_true", help="ratios to others' figures, measure nothing")
    parser.add_argument(
        "--constants", action="store_true", help="print the constants that fit one half, measure nothing"
    )
    parser.add_argument("--predict", action="store_true", help="predict what is finished anew, measure nothing")
    parser.add_argument("--resume", action="store_true", help="measure only what is not in the results yet")
    parser.add_argument("--only", help="models whose name holds this; no table is written")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--results", type=Path, default=RESULTS)
    flags = parser.parse_args()
    if flags.predict and (flags.runs or flags.limits):
        parser.error("--predict is for what was measured without preflight and without a limit")
    return flags


def main() -> int:
    """Run the benchmark and return its exit code."""
    flags = read_flags()
    if flags.published:
        print(table := published.table())
        pages.write("speed-model.md", "published", table)
        return 0
    wanted = (
        configurations.runs()
        if flags.runs
        else configurations.limits()
        if flags.limits
        else configurations.steps(flags.quick)
    )
    wanted = [one for one in wanted if not flags.only or flags.only in one.model]
    if flags.predict:
        predict(wanted, flags.results)
    elif not flags.constants:
        measure(wanted, flags.results, flags.resume)
    rows = [row for one in wanted if (row := read(flags.results).get(one.key))]
    done = [row for row in rows if "peak_bytes" in row]
    if flags.constants:
        for name, (always, share, lost) in figures.constants(figures.halves(done)[0]).items():
            print(f"{name}: {always:.0f} MiB, {share:.3f} of what layers keep, {lost:.3f} of what they gave up")
        return 0
    found = report(flags, rows, done)
    return report_figures(found, flags.json)


def measure(wanted: list[Configuration], results: Path, resume: bool) -> None:
    """Measure `wanted` one after the other; with `resume`, only those without a finished measurement."""
    results.parent.mkdir(parents=True, exist_ok=True)
    finished = read(results) if resume else {}
    for number, one in enumerate(wanted, 1):
        if one.key in finished:
            continue
        keep(row := {"key": one.key, **in_child(one)}, results)
        print(f"{number}/{len(wanted)} {one.key}: {result_line(row)}", flush=True)


def predict(wanted: list[Configuration], results: Path) -> None:
    """Predict finished measurements again, after a formula was changed.

    Predicted seconds are converted from today's matmul speed to the one measured with the old prediction.
    """
    finished = read(results)
    for one in (one for one in wanted if one.key in finished):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["LORAFIT_CALIBRATIONS"] = str(Path(folder) / "calibrations.json")
            look = preview_run(child.settings(one, Path(folder)), None)
            product = calibrate.load_calibration(look.machine).core_gflops
        row, plan = finished[one.key], look.plan
        row |= {
            "predicted_bytes": plan.predicted_peak_bytes,
            "terms": plan.memory_terms,
            "predicted_step_seconds": plan.predicted_step_seconds * product / row["plan_gflops"],
        }
        keep(row, results)
        print(f"{one.key}: {result_line(row)}", flush=True)


def keep(row: Row, results: Path) -> None:
    """Append `row`, which contains its key, to `results`: the last row of a key is the valid one."""
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def result_line(row: Row) -> str:
    """Return the peak memory of `row` and its error, or the failure, as one line of text."""
    if "peak_bytes" not in row:
        return f"{row.get('error')} {row.get('found') or ''}"
    peak, predicted = bytes_text(row["peak_bytes"]), bytes_text(row["predicted_bytes"])
    return f"{peak}, predicted {predicted} ({figures.error(row):+.1%})"


def in_child(one: Configuration) -> Row:
    """Measure one configuration in a process of its own and return its figures, or an `error`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "configuration.json"
        path.write_text(json.dumps(one.facts()), "utf-8")
        own = {"LORAFIT_CALIBRATIONS": str(Path(folder) / "calibrations.json"), "PYTHONPATH": f"{HERE}:{HERE.parent}"}
        try:
            done = subprocess.run(
                [sys.executable, "-m", "accuracy.child", str(path)],
                cwd=HERE, env={**os.environ, **own}, capture_output=True, text=True, timeout=SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {**one.facts(), "error": f"took more than {SECONDS:.0f} s"}
    if done.returncode:
        return {**one.facts(), "error": f"exit code {done.returncode}", "found": done.stderr[-1500:], "fix": None}
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def read(results: Path) -> dict[str, Row]:
    """Return finished measurements by key, the newest of each; failed ones are left out, except under limits."""
    if not results.is_file():
        return {}
    rows = [json.loads(line) for line in results.read_text("utf-8").splitlines()]
    return {row["key"]: row for row in rows if "peak_bytes" in row or row["kind"] == "limit"}


def report(flags: argparse.Namespace, rows: list[Row], done: list[Row]) -> dict[str, Any]:
    """Return the flat figures; if everything was measured, write the tables in the docs."""
    whole = not flags.quick and not flags.only
    if flags.limits:
        if whole:
            pages.write("memory-model.md", "limits", pages.limit_table(rows))
        refused = [row for row in rows if "error" in row]
        crashed = [row for row in refused if "fix" not in row or row["fix"] is None]
        return {
            "ok": bool(rows) and not crashed,
            "configurations": len(rows),
            "completed": len(done),
            "refused": len(refused),
        }
    if flags.runs:
        if whole:
            pages.write("speed-model.md", "runs", pages.run_table(done))
        return run_figures(done)
    if whole:
        pages.write("memory-model.md", "memory", pages.memory_table(done))
        pages.write("speed-model.md", "speed", pages.speed_table(done))
    return figures.summary(done, FEWEST_QUICK if flags.quick else FEWEST)


def run_figures(done: list[Row]) -> dict[str, Any]:
    """Return the flat figures of whole runs; `ok` needs five runs, times within 10% and peaks within 5%."""
    times = [abs(off) for row in done if (off := figures.speed_error(row)) is not None]
    peaks = [abs(figures.error(row)) for row in done]
    good = len(times) >= 5 and max(times) <= 0.10 and max(peaks) <= 0.05
    worst_time, worst_peak = max(times, default=None), max(peaks, default=None)
    return {"ok": good, "configurations": len(done), "worst_time_error": worst_time, "worst_error": worst_peak}


if __name__ == "__main__":
    sys.exit(main())
