"""Does a run end in the morning with what it would have had, whatever happens to it at night? Faults on the real demo model.

    python benchmarks/chaos.py [--quick] [--faults N] [--seed N] [--only KIND,...] [--json FILE]

Many short trainings by the real command line; each meets one or more faults, and must end with the bytes of the undisturbed
one (or, where memory ran out, within the law's measures). What cannot be had on a machine is skipped with a word.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from faults.deeds import ALONE, KINDS, LESS_MEMORY, SAME_BYTES, faketime, missing, mount, unmount
from faults.training import NotSurvived, Training
from faults.verdict import check, cost_of_saving, overhead
from lorafit.events import Restarted
from lorafit.rundir import RunDir

QUICK, MANY = 20, 200
PER_RUN = 3  # faults that a run meets
DISK_BYTES = 24 << 20
HANGING = (sys.executable, str(Path(__file__).with_name("faults") / "hanging.py"))
LONG = {"max_samples": 400, "max_steps": 120, "save_steps": 20, "eval_steps": 60}  # for what supervising costs


def deal(kinds: Sequence[str], count: int, rng: random.Random) -> list[list[str]]:
    """`count` faults as lists, one a run; every kind as often as any other, or once more."""
    faults = [kinds[n % len(kinds)] for n in range(count)]
    runs = []
    for group, size in ((SAME_BYTES, PER_RUN), (LESS_MEMORY, 2)):
        some = [fault for fault in faults if fault in group]
        rng.shuffle(some)
        runs += [some[start : start + size] for start in range(0, len(some), size)]
    return runs + [[fault] for fault in faults if fault in ALONE]


def disturbed(faults: list[str], folder: Path, seed: int, wanted: RunDir) -> Training:
    """A training that meets `faults` one after the other. Raises NotSurvived."""
    output, rng = folder / "output", random.Random(seed)
    output.mkdir(parents=True)
    training = Training(output)
    changes: dict[str, object] = {}
    if "fill_disk" in faults:
        mount(output, DISK_BYTES)
    if "hang" in faults:
        training.face, changes = HANGING, {"hang_seconds": 3}
    if "set_clock_back" in faults:
        (output / "clock").write_text("+0\n")
        training.environ = {"LD_PRELOAD": faketime() or "", "FAKETIME_TIMESTAMP_FILE": str(output / "clock"), "FAKETIME_NO_CACHE": "1", "DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}  # fmt: skip
    try:
        training.start(**changes)
        for number, fault in enumerate(faults):
            if number:
                training.wait_for_progress()
            KINDS[fault](training, rng)
        training.finish()
        check(training, wanted)
    finally:
        training.end()
        if "fill_disk" in faults:
            unmount(output)
    return training


def undisturbed(folder: Path, **changes: object) -> Training:
    """A training that meets nothing, and what it and its face take."""
    training = Training(folder)
    training.start(**changes)
    training.finish()
    return training


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
    parser.add_argument("--no_costs", action="store_true", help="leave out what supervising and saving cost")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
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


def torment(runs: list[list[str]], folder: Path, seed: int) -> dict[str, Any]:
    """All runs; what was injected and survived, by kind."""
    wanted = undisturbed(folder / "undisturbed").run
    assert wanted is not None
    injected, survived = dict.fromkeys(KINDS, 0), 0
    lost = restarts = 0
    for number, faults in enumerate(runs):
        began = time.monotonic()
        place = folder / f"run-{number}"
        try:
            training = disturbed(faults, place, seed * 1000 + number, wanted)
            survived += len(faults)
            lost += training.lost_steps
            restarts += len(training.of(Restarted))
            word = "survived"
        except NotSurvived as error:
            word = f"NOT SURVIVED: {error}"
        for fault in faults:
            injected[fault] += 1
        print(
            f"run {number + 1}/{len(runs)}, {time.monotonic() - began:.0f} s: {', '.join(faults)}: {word}", flush=True
        )
        shutil.rmtree(place, ignore_errors=True)
    count = sum(injected.values())
    return {
        "ok": survived == count and count > 0, "injected": count, "survived": survived, **injected,
        "runs": len(runs), "restarts": restarts, "lost_steps": lost,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
