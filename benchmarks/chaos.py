"""Fault injection on the real demo model: a run must end with the same result, whatever happens to it.

    python benchmarks/chaos.py [--quick] [--faults N] [--seed N] [--only KIND,...] [--jobs N] [--record FILE]
                               [--costs only] [--json FILE]

Many short trainings run through the real command line. Each meets a few faults, and must end with the bytes of the
undisturbed run (or, where memory ran out, within tolerances). Faults that a machine cannot have are skipped with a
message. The same --record resumes an interrupted benchmark: benchmarks/results/chaos.jsonl holds one of --seed 8.
"""

import argparse
import contextlib
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import psutil

from ending import report_figures
from faults.deeds import HANG_SECONDS, KINDS, SAME_BYTES, fake_clock, missing, mount, unmount
from faults.training import SETTINGS, FinishedTooEarly, NotSurvived, Training, write_rows
from faults.verdict import check, cost_of_saving, overhead
from lorafit.events import Restarted
from lorafit.run_folders.directory import RunDir

QUICK, MANY = 20, 200
PER_RUN = 6  # largest number of faults per run
MOST_RETRIES = 5  # further runs that try a fault again if it came too late
DISK_BYTES = 64 << 20
HANGING = (sys.executable, str(Path(__file__).with_name("faults") / "hanging.py"))
LARGE_STEPS, SMALLER = 4, 128  # SMALLER: tokens per micro-batch
LARGE: dict[str, object] = {
    "dataset_name": "demo", "max_samples": 30, "max_length": 128, "effective_batch": 4, "max_steps": LARGE_STEPS,
    "eval_steps": LARGE_STEPS, "no_preflight": True,
}  # fmt: skip
COSTLY: dict[str, object] = {
    "dataset_name": "demo", "max_samples": 400, "max_length": 128, "effective_batch": 4, "max_steps": 60, "save_steps": 5,
    "eval_steps": 60, "lora_r": 8,
}  # fmt: skip


@dataclass
class ReferenceRuns:
    """Runs without faults, each made on first use.

    `known` holds their folders, and the most bytes that their workers allocated.
    """

    folder: Path
    known: dict[str, tuple[RunDir, int]] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def run(self, **changes: object) -> RunDir:
        """Return the folder of the run with these changed settings."""
        return self._run(changes)[0]

    def between(self) -> int:
        """Return a memory limit in bytes that LARGE exceeds, and LARGE with the token budget SMALLER does not."""
        most, least = self._run(LARGE)[1], self._run({**LARGE, "token_budget": SMALLER})[1]
        return (most + least) // 2

    def _run(self, changes: dict[str, object]) -> tuple[RunDir, int]:
        name = str(sorted(changes.items()))
        with self.lock:
            if name not in self.known:
                training = new_training(self.folder / str(len(self.known)))
                training.start(**changes)
                most = peak_allocated(training)
                training.finish()
                assert training.run is not None
                self.known[name] = training.run, most
                print(f"undisturbed: {changes or ''} {most >> 20} MiB at most", flush=True)
            return self.known[name]


def new_training(folder: Path) -> Training:
    """Make `folder` and return a training in it."""
    training = Training(folder / "output")
    training.output.mkdir(parents=True)
    write_rows(folder / "rows.jsonl")
    return training


def peak_allocated(training: Training) -> int:
    """Wait until `training` ends and return the most bytes that its worker allocated.

    The bytes are VmData, which RLIMIT_DATA limits.
    """
    assert training.process is not None
    most = 0
    while training.process.poll() is None:
        if (worker := training.worker) is not None:
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{worker.pid}/status").read_text()
                sizes = [int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData")]
                most = max([most, *sizes])
        time.sleep(0.02)
    return most


def assign_faults(kinds: Sequence[str], count: int, rng: random.Random) -> list[list[str]]:
    """Return `count` faults as one list per run; the counts of any two kinds differ by at most one."""
    faults = [kinds[n % len(kinds)] for n in range(count)]
    runs: list[list[str]] = []
    for together, most in ((SAME_BYTES, PER_RUN), (("kill_for_memory",), 2), (("run_out_in_step",), 1)):
        some = [fault for fault in faults if fault in together]
        rng.shuffle(some)
        runs += [some[start : start + most] for start in range(0, len(some), most)]
    rng.shuffle(runs)
    return runs


def run_with_faults(faults: list[str], folder: Path, seed: int, undisturbed: ReferenceRuns) -> dict[str, int]:
    """Let a training meet `faults` one after the other and check its result. Raises NotSurvived.

    Return how many faults came in time, and how many restarts and repeated steps they caused.
    """
    training = new_training(folder)
    changes: dict[str, object] = {}
    if "fill_disk" in faults:
        mount(training.output, DISK_BYTES)
    if "hang" in faults:
        training.face = HANGING
    if "run_out_in_step" in faults:
        changes, training.steps, training.data_bytes = dict(LARGE), LARGE_STEPS, undisturbed.between()
    if "set_clock_back" in faults:
        training.environ = fake_clock(folder)
    wanted = undisturbed.run(**changes)
    try:
        watched = {"hang_seconds": HANG_SECONDS} if {"hang", "suspend_all"} & set(faults) else {}
        training.start(**changes, **watched)
        met = inject(training, faults, random.Random(seed))
        training.finish()
        check(training, wanted, lambda budget: undisturbed.run(**{**changes, "token_budget": budget}))
        return {"met": met, "restarts": training.written(Restarted), "lost_steps": training.lost_steps}
    finally:
        training.end()
        if "fill_disk" in faults:
            unmount(training.output)


def inject(training: Training, faults: list[str], rng: random.Random) -> int:
    """Cause `faults` one after the other; return how many came before the training was done."""
    for number, fault in enumerate(faults):
        try:
            if number:
                training.wait_for_progress()
            KINDS[fault](training, rng)
        except FinishedTooEarly:
            return number
    return len(faults)


def measure_costs(folder: Path) -> dict[str, Any]:
    """Return the cost of supervising and saving, measured in one longer run."""
    training = new_training(folder)
    training.start(**COSTLY)
    assert training.process is not None
    samples: list[tuple[int, float, float]] = []
    while training.process.poll() is None:
        worker = training.worker
        try:
            face = psutil.Process(training.process.pid).cpu_times()
            if worker is not None:
                theirs = worker.cpu_times()
                samples.append((training.step, face.user + face.system, theirs.user + theirs.system))
        except psutil.Error:
            pass
        time.sleep(0.5)
    training.finish()
    return {**overhead(training, samples), **cost_of_saving(training)}


@dataclass(frozen=True)
class Outcome:
    """The result of one run: `met` faults came in time; `word` is a message; `lost_steps` were repeated."""

    number: int
    faults: list[str]
    met: int
    survived: bool
    word: str
    restarts: int = 0
    lost_steps: int = 0
    seconds: float = 0.0


def outcome(number: int, faults: list[str], folder: Path, seed: int, undisturbed: ReferenceRuns) -> Outcome:
    """Let one run meet its faults; keep its folder if it does not survive."""
    began = time.monotonic()
    try:
        facts = run_with_faults(faults, folder, seed * 1000 + number, undisturbed)
        met = facts["met"]
        word = "survived" if met == len(faults) else f"survived the first {met}; then it was done"
        found = Outcome(number, faults, survived=True, word=word, **facts)
        shutil.rmtree(folder, ignore_errors=True)
    except NotSurvived as error:
        found = Outcome(number, faults, len(faults), False, f"NOT SURVIVED ({folder}): {error}")
    return replace(found, seconds=round(time.monotonic() - began, 1))


@dataclass
class Record:
    """The outcomes of all runs, kept in `file` if there is one, so that a run that survived is not repeated."""

    file: Path | None
    lock: Lock = field(default_factory=Lock)

    def survived(self, number: int, faults: list[str]) -> Outcome | None:
        """Return the recorded outcome of this run with the same faults, if it survived."""
        lines = self.file.read_text().splitlines() if self.file and self.file.exists() else []
        past = (Outcome(**json.loads(line)) for line in lines)
        return next((one for one in past if one.survived and (one.number, one.faults) == (number, faults)), None)

    def keep(self, found: Outcome) -> None:
        """Print an outcome and append it to the file."""
        told = f"run {found.number + 1}, {found.seconds:.0f} s, {found.lost_steps} steps again"
        with self.lock:
            print(f"{told}: {', '.join(found.faults)}: {found.word}", flush=True)
            if self.file:
                with self.file.open("a") as file:
                    file.write(json.dumps(asdict(found)) + "\n")


def run_all(runs: list[list[str]], folder: Path, seed: int, record: Record, jobs: int) -> list[Outcome]:
    """Do all runs, `jobs` at a time; faults that came too late get up to MOST_RETRIES further runs."""
    undisturbed, outcomes = ReferenceRuns(folder / "undisturbed"), []

    def one(number: int, faults: list[str]) -> Outcome:
        if (found := record.survived(number, faults)) is None:
            found = outcome(number, faults, folder / f"run-{number}", seed, undisturbed)
            record.keep(found)
        return found

    waiting = list(enumerate(runs))
    with ThreadPoolExecutor(jobs) as pool:
        for _time in range(MOST_RETRIES + 1):
            found = list(pool.map(one, *zip(*waiting, strict=True))) if waiting else []
            outcomes += found
            waiting = [
                (done.number + len(runs), done.faults[done.met :]) for done in found if done.met < len(done.faults)
            ]
    return outcomes


def figures_of(outcomes: list[Outcome]) -> dict[str, Any]:
    """Return flat figures: faults injected and survived, the count of every kind, restarts and repeated steps."""
    met = [fault for one in outcomes for fault in one.faults[: one.met]]
    survived = sum(one.met for one in outcomes if one.survived)
    return {
        "ok": bool(met) and all(one.survived for one in outcomes),
        "injected": len(met),
        "survived": survived,
        **{kind: met.count(kind) for kind in KINDS},
        "runs": len(outcomes),
        "restarts": sum(one.restarts for one in outcomes),
        "lost_steps": sum(one.lost_steps for one in outcomes),
    }


def main() -> int:
    """Run the benchmark and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} faults instead of {MANY}")
    parser.add_argument("--faults", type=int)
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--only", help="these kinds alone: " + ", ".join(KINDS))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; give each a core by OMP_NUM_THREADS")
    parser.add_argument("--model", default="demo", help="another base model, a smaller one to try this script")
    parser.add_argument(
        "--record", type=Path, help="a file that keeps what came of each run, to go on with another time"
    )
    parser.add_argument(
        "--costs", choices=("too", "only", "no"), default="too", help="what supervising and saving cost"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs and their children ignore SIGINT
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, lambda *_signal: None)  # unlike SIG_IGN, children do not inherit it
    SETTINGS["model_name"] = args.model
    asked = args.only.split(",") if args.only else list(KINDS)
    reasons = {kind: reason for kind in asked if (reason := missing(kind))}
    for kind, reason in reasons.items():
        print(f"skipped: {kind}: {reason}", flush=True)
    kinds = [kind for kind in asked if kind not in reasons]
    count = args.faults or (QUICK if args.quick else MANY)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    figures: dict[str, Any] = {"ok": True}
    if args.costs != "only":
        runs = assign_faults(kinds, count, random.Random(args.seed))
        figures = figures_of(run_all(runs, folder, args.seed, Record(args.record), args.jobs)) | {
            "skipped": ", ".join(reasons)
        }
    if args.costs != "no":
        figures |= measure_costs(folder / "costs")
    if figures["ok"]:  # else keep the folder of the run that did not survive
        shutil.rmtree(folder, ignore_errors=True)
    return report_figures(figures, args.json)


if __name__ == "__main__":
    sys.exit(main())
