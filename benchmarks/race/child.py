"""The process of one contestant as the race controls it: start, wait until loaded, run a step, end."""

import json
import os
import queue
import subprocess
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from peers.protocol import Task
from race.contestants import Contestant

BENCHMARKS = Path(__file__).parents[1]
READY_SECONDS, STEP_SECONDS = 600.0, 1800.0
TAIL = 1500  # characters of stderr in the message of a failure


class ContestantFailed(Exception):
    """Raised if a contestant exits (the message holds the end of its stderr) or does not answer in time."""


class Child:
    """The process of a contestant, started by the constructor.

    `load_seconds` is the time from the start to the first line, including imports. `peak_bytes` is the highest peak
    that the contestant has reported.
    """

    def __init__(self, contestant: Contestant, task: Task, folder: Path) -> None:
        self.contestant, self.peak_bytes, self.load_seconds = contestant, 0, 0.0
        self.began = time.strftime("%Y-%m-%dT%H:%M:%S")  # this time of the first child is the name of the heat
        path = folder / f"{contestant.name.replace(' ', '-')}.json"
        path.write_text(json.dumps(asdict(task)), "utf-8")
        self._stderr = (folder / f"{path.stem}.err").open("w+", encoding="utf-8")
        self._lines: queue.Queue[str] = queue.Queue()
        self._began = time.perf_counter()
        self._process = subprocess.Popen(
            [str(contestant.python), "-m", f"peers.{contestant.module}", str(path)],
            cwd=BENCHMARKS,
            env=_environment(task.threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        assert self._process.stdout is not None
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    def _read(self, out: IO[str]) -> None:
        for line in out:
            self._lines.put(line)
        self._lines.put("")

    def wait_until_ready(self) -> dict[str, Any]:
        """Wait for the first line and return its content: versions and peak memory. Raises Lost."""
        facts = self._hear(READY_SECONDS)
        self.load_seconds = time.perf_counter() - self._began
        return facts

    def step(self) -> dict[str, Any]:
        """Run one step and return what it cost (peers/protocol.py). Raises Lost."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("step\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ContestantFailed(self._last_words()) from None
        return self._hear(STEP_SECONDS)

    def _hear(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise ContestantFailed(f"silent for {seconds:.0f} s") from None
        if not line:
            raise ContestantFailed(self._last_words())
        facts: dict[str, Any] = json.loads(line)
        self.peak_bytes = max(self.peak_bytes, facts["peak_bytes"])
        return facts

    def _last_words(self) -> str:
        code = self._process.wait(30)
        self._stderr.seek(0)
        return f"ended with {code}: {self._stderr.read()[-TAIL:].strip()}"

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        self._stderr.close()


def _environment(threads: int) -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    cores = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    cores["GOMP_SPINCOUNT"] = "1000"  # lorafit's own setting; load on the machine then affects all alike
    quiet = {"TOKENIZERS_PARALLELISM": "false", "WANDB_DISABLED": "true", "TRANSFORMERS_VERBOSITY": "error"}
    return {**os.environ, **offline, **cores, **quiet, "PYTHONPATH": f"{BENCHMARKS}:{BENCHMARKS.parent}"}
