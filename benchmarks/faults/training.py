"""A training run controlled from outside: by its command line, its files and its process IDs."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType

import psutil

from lorafit.events import Event, Saved, StepDone, read_events
from lorafit.run_folders.directory import RunDir

STEPS, SAVE_STEPS = 24, 2
SETTINGS: dict[str, object] = {
    "model_name": "demo", "max_length": 64, "max_steps": STEPS, "effective_batch": 2, "token_budget": 4096,
    "save_steps": SAVE_STEPS, "eval_steps": 12, "val_size": 2, "lora_r": 2, "lora_dropout": 0.1, "lang": "en",
}  # fmt: skip
ROWS = 60  # a few tokens each, so that a run takes little time
LAUNCHER = (sys.executable, "-m", "lorafit")
WAIT_SECONDS = 600.0  # limit of every wait; a run that needs longer has not survived
POLL_SECONDS = 0.05  # polling interval


class NotSurvived(Exception):
    """Raised if a run does not react to a fault as it should."""


def write_rows(path: Path) -> None:
    """Write ROWS short and different rows as JSON lines."""
    sums = [(n, n // 7) for n in range(10, 10 + ROWS)]
    talks = [(("system", "Add."), ("user", f"{a} + {b}"), ("assistant", f"It is {a + b}.")) for a, b in sums]
    rows = [{"messages": [{"role": role, "content": text} for role, text in talk]} for talk in talks]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def flags(output: Path, **changes: object) -> list[str]:
    """Return the training's flags, with `changes` on top of SETTINGS; its rows lie beside `output`."""
    settings = {**SETTINGS, "dataset_name": output.parent / "rows.jsonl", "output_dir": output, **changes}
    return [
        word
        for name, value in settings.items()
        for word in ((f"--{name}",) if value is True else (f"--{name}", str(value)))
    ]


class FinishedTooEarly(Exception):
    """Raised if the training finished before the fault could affect it."""


@dataclass
class Training:
    """One run in the folder `output`, with all the processes that work on it.

    `face` is the command that starts lorafit, and `process` is its newest process. `data_bytes` is the memory limit
    that the fault `run_out_in_step` sets. `hangs` counts the restarts after the fault `hang`.
    """

    output: Path
    face: tuple[str, ...] = LAUNCHER
    environ: dict[str, str] = field(default_factory=dict)
    steps: int = STEPS
    data_bytes: int = 0  # RLIMIT_DATA in bytes
    hangs: int = 0
    process: subprocess.Popen[str] | None = None

    def start(self, **changes: object) -> None:
        """Start the run, or resume it if its folder exists."""
        words = (
            ["resume", "--output_dir", str(self.output), "--lang", "en"]
            if self.run
            else ["train", *flags(self.output, **changes)]
        )
        self.process = subprocess.Popen(
            [*self.face, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={"OMP_NUM_THREADS": "1", **os.environ, "LORAFIT_CALIBRATIONS": str(self.output.parent / "calibrations.json"),
                 **self.environ},
        )  # fmt: skip

    @property
    def run(self) -> RunDir | None:
        """Return the run's folder, or None while there is none that can be resumed."""
        found = [path for path in self.output.glob("*/config.yaml")]
        return RunDir(found[0].parent) if found else None

    def of(self, kind: type[Event] | UnionType) -> list[Event]:
        """Return all valid events of these kinds; events that a resume discarded are left out."""
        return [e for e in read_events(self.run.events) if isinstance(e, kind)] if self.run else []

    @property
    def step(self) -> int:
        """Return the number of finished steps."""
        return max((e.step for e in self.of(StepDone)), default=0)

    @property
    def saved(self) -> int:
        """Return the step of the newest checkpoint in the events, 0 without one."""
        return max((e.step for e in self.of(Saved)), default=0)

    def written(self, kind: type[Event], words: str = "") -> int:
        """Return how many events of one kind are in the record, with `words` in their lines.

        Those that a resume discarded count too.
        """
        assert self.run is not None
        lines = self.run.events.read_text("utf-8", errors="replace").splitlines()
        return sum(f'"event": "{kind.name}"' in line and words in line for line in lines)

    @property
    def lost_steps(self) -> int:
        """Return how many steps were repeated."""
        return self.written(StepDone) - self.step

    @property
    def worker(self) -> psutil.Process | None:
        """Return the process with the engine, or None if none is alive."""
        assert self.process is not None
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.ZombieProcess):
                    if any("child" in word or "hanging" in word for word in child.cmdline()):
                        return child
        return None

    def wait(self, what: Callable[[], object], name: str, snap_seconds: float = POLL_SECONDS) -> None:
        """Wait until `what()` is true.

        Raise TooLate if the training finishes before that. Raise NotSurvived if it fails or WAIT_SECONDS pass.
        """
        deadline = time.monotonic() + WAIT_SECONDS
        while not what():
            if self.process is not None and self.process.poll() is not None and not what():
                if self.process.returncode == 0:
                    raise FinishedTooEarly(name)
                raise NotSurvived(f"it ended with {self.process.returncode} before {name}:\n{self.said()[-2000:]}")
            if time.monotonic() > deadline:
                raise NotSurvived(f"never: {name}")
            time.sleep(snap_seconds)

    def wait_for_step(self, step: int) -> None:
        """Wait until `step` is done; a step among the last two counts as the one before them."""
        self.wait(lambda: self.step >= min(step, self.steps - 2), f"step {step}")

    def wait_for_new_step(self) -> None:
        """Wait until a further step is done."""
        step = self.step
        self.wait(lambda: self.step > step, f"a step after {step}")

    def wait_for_progress(self) -> None:
        """Wait for a new checkpoint, so that the next fault affects a run that has progressed since the last restart.

        Do not wait if at most SAVE_STEPS steps remain after the newest checkpoint.
        """
        saved = self.saved
        self.wait(lambda: self.saved > saved or self.saved >= self.steps - SAVE_STEPS, "another checkpoint")

    def wait_for_worker(self) -> psutil.Process:
        """Wait for the process with the engine and return it."""
        found: list[psutil.Process] = []
        self.wait(lambda: found.extend(filter(None, [self.worker])) or found, "a worker")
        return found[0]

    def wait_for_another(self, pid: int) -> None:
        """Wait until a process with the engine other than `pid` is alive."""
        self.wait(lambda: (worker := self.worker) is not None and worker.pid != pid, "a restart")

    def signal_worker(self, number: signal.Signals) -> int:
        """Send a signal to the process with the engine and return its ID."""
        worker = self.wait_for_worker()
        with contextlib.suppress(psutil.Error):
            worker.send_signal(number)
        return worker.pid

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to supervisor and worker together, as a terminal does."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill_group(self) -> None:
        """Send SIGKILL to supervisor and worker together, as when a machine stops."""
        self.signal_group(signal.SIGKILL)
        self.said()

    def said(self) -> str:
        """Wait until the command ends and return its output; an empty string if it does not end or was read before."""
        assert self.process is not None
        try:
            return self.process.communicate(timeout=WAIT_SECONDS)[0] or ""
        except (subprocess.TimeoutExpired, ValueError):
            return ""

    def finish(self) -> None:
        """Wait until the command ends; raise NotSurvived unless its exit code is 0."""
        said = self.said()
        assert self.process is not None
        if self.process.returncode != 0:
            raise NotSurvived(f"it ended with {self.process.returncode}:\n{said[-2000:]}")

    def end(self) -> None:
        """Kill all processes of the command's group."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
