"""How is a training started, watched and ended from outside? By its command line, its files and its process ids."""

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

import psutil

from lorafit.events import Event, Saved, StepDone, read_events
from lorafit.run_folders.directory import RunDir

STEPS, SAVE_STEPS = 24, 2
SETTINGS: dict[str, object] = {
    "model_name": "demo", "max_length": 64, "max_steps": STEPS, "effective_batch": 2, "token_budget": 4096,
    "save_steps": SAVE_STEPS, "eval_steps": 12, "val_size": 2, "lora_r": 2, "lora_dropout": 0.1, "lang": "en",
}  # fmt: skip
ROWS = 60  # of a few tokens each, so that many runs take little time
FACE = (sys.executable, "-m", "lorafit")
PATIENCE_SECONDS = 600.0  # for anything to happen; what takes longer has not survived
SNAP_SECONDS = 0.05  # between looks


class NotSurvived(Exception):
    """What should have happened did not."""


def write_rows(path: Path) -> None:
    """Rows that are short, and each another."""
    sums = [(n, n // 7) for n in range(10, 10 + ROWS)]
    talks = [(("system", "Add."), ("user", f"{a} + {b}"), ("assistant", f"It is {a + b}.")) for a, b in sums]
    rows = [{"messages": [{"role": role, "content": text} for role, text in talk]} for talk in talks]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def flags(output: Path, **changes: object) -> list[str]:
    """The training's command line; its rows lie beside `output`."""
    settings = {**SETTINGS, "dataset_name": output.parent / "rows.jsonl", "output_dir": output, **changes}
    return [
        word
        for name, value in settings.items()
        for word in ((f"--{name}",) if value is True else (f"--{name}", str(value)))
    ]


class TooLate(Exception):
    """The training was done before the fault could meet it."""


@dataclass
class Training:
    """One run in the folder `output`, over all the processes that work at it."""

    output: Path
    face: tuple[str, ...] = FACE
    environ: dict[str, str] = field(default_factory=dict)
    steps: int = STEPS
    data_bytes: int = 0  # what a fault lets it allocate at most
    process: subprocess.Popen[str] | None = None

    def start(self, **changes: object) -> None:
        """Begin, or go on with what was begun."""
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
        """The run's folder, as soon as there is one that can be gone on with."""
        found = [path for path in self.output.glob("*/config.yaml")]
        return RunDir(found[0].parent) if found else None

    def of(self, kind: type[Event]) -> list[Event]:
        """All events of one kind; those that a resume made void are left out."""
        return [e for e in read_events(self.run.events) if isinstance(e, kind)] if self.run else []

    @property
    def step(self) -> int:
        """Steps done."""
        return max((e.step for e in self.of(StepDone)), default=0)

    @property
    def saved(self) -> int:
        return max((e.step for e in self.of(Saved)), default=0)

    def written(self, kind: type[Event]) -> int:
        """How many events of one kind stand in the record, void ones too."""
        assert self.run is not None
        lines = self.run.events.read_text("utf-8", errors="replace").splitlines()
        return sum(f'"event": "{kind.name}"' in line for line in lines)

    @property
    def lost_steps(self) -> int:
        """Steps that were done more than once."""
        return self.written(StepDone) - self.step

    @property
    def worker(self) -> psutil.Process | None:
        """The process with the engine, while it lives."""
        assert self.process is not None
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.ZombieProcess):
                    if any("child" in word or "hanging" in word for word in child.cmdline()):
                        return child
        return None

    def wait(self, what: Callable[[], object], name: str, snap_seconds: float = SNAP_SECONDS) -> None:
        """Until `what()` holds; where the training ends before, it has not survived."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not what():
            if self.process is not None and self.process.poll() is not None and not what():
                if self.process.returncode == 0:
                    raise TooLate(name)
                raise NotSurvived(f"it ended with {self.process.returncode} before {name}:\n{self.said()[-2000:]}")
            if time.monotonic() > deadline:
                raise NotSurvived(f"never: {name}")
            time.sleep(snap_seconds)

    def wait_for_step(self, step: int) -> None:
        """Until `step` is done, and the process that did it is at work."""
        self.wait(lambda: self.step >= min(step, self.steps - 2), f"step {step}")

    def wait_for_progress(self) -> None:
        """Until something is saved after the last restart, so that the next fault meets a run that got on."""
        saved = self.saved
        self.wait(lambda: self.saved > saved or self.saved >= self.steps - SAVE_STEPS, "another checkpoint")

    def wait_for_worker(self) -> psutil.Process:
        """The process with the engine."""
        found: list[psutil.Process] = []
        self.wait(lambda: found.extend(filter(None, [self.worker])) or found, "a worker")
        return found[0]

    def wait_for_another(self, pid: int) -> None:
        """Until a process with the engine lives that is not `pid`."""
        self.wait(lambda: (worker := self.worker) is not None and worker.pid != pid, "a restart")

    def signal_worker(self, number: signal.Signals) -> int:
        """Send a signal to the process with the engine; its id."""
        worker = self.wait_for_worker()
        with contextlib.suppress(psutil.Error):
            worker.send_signal(number)
        return worker.pid

    def kill_group(self) -> None:
        """SIGKILL to supervisor and worker alike, as when a machine stops."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.said()

    def said(self) -> str:
        """What the face printed until its end."""
        assert self.process is not None
        try:
            return self.process.communicate(timeout=PATIENCE_SECONDS)[0] or ""
        except (subprocess.TimeoutExpired, ValueError):
            return ""

    def finish(self) -> None:
        """See it end well."""
        said = self.said()
        assert self.process is not None
        if self.process.returncode != 0:
            raise NotSurvived(f"it ended with {self.process.returncode}:\n{said[-2000:]}")

    def end(self) -> None:
        """Leave no process behind."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
