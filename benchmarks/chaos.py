"""Does a run end in the morning with what it would have had, whatever happens to it at night? Faults on the real demo model.

    python benchmarks/chaos.py [--quick] [--faults N] [--seed N] [--only KIND,...] [--json FILE]

Many short trainings by the real command line; each meets one or more faults, and must end with the bytes of the undisturbed
one (or, where memory ran out, within the law's measures). What cannot be had on a machine is skipped with a word.
"""

import argparse
import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from faults.deeds import ALONE, KINDS, SAME_BYTES, fake_clock, missing, mount, unmount
from faults.training import SETTINGS, NotSurvived, TooLate, Training
from faults.verdict import check, cost_of_saving, overhead
from lorafit.events import Restarted
from lorafit.rundir import RunDir

QUICK, MANY = 20, 200
PER_RUN = 3  # faults that a run meets
DISK_BYTES = 24 << 20
HANGING = (sys.executable, str(Path(__file__).with_name("faults") / "hanging.py"))
LARGE: dict[str, object] = {"max_length": 256, "effective_batch": 8, "token_budget": 4096, "no_preflight": True}
SMALLER = 256  # tokens at a time
LONG: dict[str, object] = {
    "max_samples": 400,
    "max_steps": 120,
    "save_steps": 20,
    "eval_steps": 60,
}  # for what supervising costs


@dataclass(frozen=True)
class Wanted:
    """Undisturbed runs, and a limit of memory that the large one's budget exceeds and a smaller budget does not."""

    small: RunDir
    large: RunDir
    data_bytes: int


def deal(kinds: Sequence[str], count: int, rng: random.Random) -> list[list[str]]:
    """`count` faults as lists, one a run; every kind as often as any other, or once more."""
    faults = [kinds[n % len(kinds)] for n in range(count)]
    some = [fault for fault in faults if fault in SAME_BYTES]
    rng.shuffle(some)
    runs = [some[start : start + PER_RUN] for start in range(0, len(some), PER_RUN)]
    return runs + [[fault] for fault in faults if fault in ALONE]


def disturbed(faults: list[str], folder: Path, seed: int, wanted: Wanted) -> tuple[Training, int]:
    """A training that meets `faults` one after the other, and how many came in time. Raises NotSurvived."""
    output = folder / "output"
    output.mkdir(parents=True)
    training = Training(output)
    changes: dict[str, object] = {}
    if "fill_disk" in faults:
        mount(output, DISK_BYTES)
    if "hang" in faults:
        training.face, changes = HANGING, {"hang_seconds": 3}
    if "run_out_in_step" in faults:
        changes, training.data_bytes = dict(LARGE), wanted.data_bytes
    if "set_clock_back" in faults:
        training.environ = fake_clock(output / "clock")
    try:
        training.start(**changes)
        met = meet(training, faults, random.Random(seed))
        training.finish()
        check(training, wanted.large if "run_out_in_step" in faults else wanted.small)
    finally:
        training.end()
        if "fill_disk" in faults:
            unmount(output)
    return training, met


def data_bytes(folder: Path, **changes: object) -> tuple[RunDir, int]:
    """A training that meets nothing, and the most that its worker allocates."""
    training, most = Training(folder), 0
    training.start(**changes)
    assert training.process is not None
    while training.process.poll() is None:
        if (worker := training.worker) is not None:
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{worker.pid}/status").read_text()
                most = max(
                    [most, *(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData"))]
                )
        time.sleep(0.02)
    training.finish()
    assert training.run is not None
    return training.run, most


def undisturbed_runs(folder: Path, with_large: bool) -> Wanted:
    """What every disturbed run is compared with."""
    training = Training(folder / "small")
    training.start()
    training.finish()
    assert training.run is not None
    if not with_large:
        return Wanted(training.run, training.run, 0)
    large, most = data_bytes(folder / "large", **LARGE)
    _run, least = data_bytes(folder / "least", **{**LARGE, "token_budget": SMALLER})
    print(f"memory: {most >> 20} MiB with 4096 tokens at a time, {least >> 20} MiB with {SMALLER}", flush=True)
    return Wanted(training.run, large, (most + least) // 2)


def meet(training: Training, faults: list[str], rng: random.Random) -> int:
    """How many of `faults` came before the training was done."""
    for number, fault in enumerate(faults):
        try:
            if number:
                training.wait_for_progress()
            KINDS[fault](training, rng)
        except TooLate:
            return number
    return len(faults)


def measured(folder: Path) -> dict[str, Any]:
    """What supervising and saving cost, in one longer run."""
    training = Training(folder)
    training.start(**LONG)
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} faults instead of {MANY}")
    parser.add_argument("--faults", type=int)
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--only", help="these kinds alone: " + ", ".join(KINDS))
    parser.add_argument("--model", default="demo", help="another base model, a smaller one to try this script")
    parser.add_argument("--no_costs", action="store_true", help="leave out what supervising and saving cost")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    SETTINGS["model_name"] = args.model
    rng = random.Random(args.seed)
    asked = args.only.split(",") if args.only else list(KINDS)
    reasons = {kind: reason for kind in asked if (reason := missing(kind))}
    for kind, reason in reasons.items():
        print(f"skipped: {kind}: {reason}")
    kinds = [kind for kind in asked if kind not in reasons]
    runs = deal(kinds, args.faults or (QUICK if args.quick else MANY), rng)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        figures = {**torment(runs, folder, args.seed), **({} if args.no_costs else measured(folder / "long"))}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    figures["skipped"] = ", ".join(reasons)
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["ok"] else 1


@dataclass
class Tally:
    """What was injected and survived."""

    injected: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    survived: int = 0
    runs: int = 0
    restarts: int = 0
    lost_steps: int = 0

    def count(self, faults: list[str], training: Training | None) -> None:
        """Note the `faults` that a run met; None for a training that did not survive them."""
        self.runs += 1
        for fault in faults:
            self.injected[fault] += 1
        if training is not None:
            self.survived += len(faults)
            self.restarts += len(training.of(Restarted))
            self.lost_steps += training.lost_steps

    def figures(self) -> dict[str, Any]:
        count = sum(self.injected.values())
        facts = {"runs": self.runs, "restarts": self.restarts, "lost_steps": self.lost_steps}
        return {
            "ok": 0 < count == self.survived,
            "injected": count,
            "survived": self.survived,
            **self.injected,
            **facts,
        }


def torment(runs: list[list[str]], folder: Path, seed: int) -> dict[str, Any]:
    """All runs; faults that came too late for one get another, twice at most."""
    wanted = undisturbed_runs(folder, any("run_out_in_step" in faults for faults in runs))
    tally, queue = Tally(), [(faults, 0) for faults in runs]
    for number, (faults, late) in enumerate(queue):
        began, place = time.monotonic(), folder / f"run-{number}"
        try:
            training, met = disturbed(faults, place, seed * 1000 + number, wanted)
            tally.count(faults[:met], training)
            word = "survived" + (f" the first {met}; then it was done" if met < len(faults) else "")
            if met < len(faults) and late < 2:
                queue.append((faults[met:], late + 1))
        except NotSurvived as error:
            tally.count(faults, None)
            word = f"NOT SURVIVED: {error}"
        print(
            f"run {number + 1}/{len(queue)}, {time.monotonic() - began:.0f} s: {', '.join(faults)}: {word}", flush=True
        )
        shutil.rmtree(place, ignore_errors=True)
    return tally.figures()


if __name__ == "__main__":
    sys.exit(main())
