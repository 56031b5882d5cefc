"""How does a contestant talk with the race? JSON lines: it says that it is ready, is told "step", and says what it cost.

    python -m peers.NAME TASK.json

Needs torch and numpy only, since a contestant may live in a Python of its own. A step is bracketed by a matrix product
at the model's shapes, so that a shared machine's moods can be taken out of its time.
"""

import json
import os
import re
import sys
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

GEMM_SECONDS = 0.3  # each time: noise of about 2% on two cores
IGNORED = -100  # the label of a token without loss, in transformers and what is built on it

PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "llamafactory", "unsloth", "lorafit", "mlx", "mlx_lm")

Row = tuple[list[int], list[bool]]  # token ids, and which of them carry loss


@dataclass(frozen=True)
class Task:
    """What every contestant is given alike, and its own `options`."""

    model: str
    samples: str  # .npz: ids, targets, ends
    steps: list[list[int]]  # sample numbers of each step
    device: str
    threads: int
    max_length: int
    lora_r: int
    lora_alpha: float
    learning_rate: float
    gemm: tuple[int, int, int]  # tokens, in, out
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls) -> "Task":
        return cls(**json.loads(Path(sys.argv[1]).read_text("utf-8")))

    def rows(self) -> list[list[Row]]:
        """The samples of each step."""
        arrays = np.load(self.samples)
        starts = [0, *arrays["ends"].tolist()]

        def row(index: int) -> Row:
            part = slice(starts[index], starts[index + 1])
            return arrays["ids"][part].tolist(), arrays["targets"][part].tolist()

        return [[row(index) for index in step] for step in self.steps]


class Referee:
    """The contestant's end of the line. What libraries print goes to stderr."""

    def __init__(self, task: Task) -> None:
        self.task, self.began, self.seconds, self.before = task, 0.0, 0.0, 0.0
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._ready = False

    def say(self, **facts: Any) -> None:
        print(json.dumps(facts), file=self._out, flush=True)

    def begin(self) -> None:
        """Wait for the word, then start the clock. The first time, say that all is loaded."""
        if not self._ready:
            self._ready = True
            self.say(versions=versions(), peak_bytes=peak_bytes(self.task.device))
        if sys.stdin.readline().strip() != "step":
            os._exit(0)  # nothing is to be kept, and some trainers would save now
        self.before = gemm_gflops(self.task)
        synchronise(self.task.device)
        self.began = time.perf_counter()

    def stop(self) -> None:
        synchronise(self.task.device)
        self.seconds = time.perf_counter() - self.began

    def report(self, loss: float) -> None:
        """`loss` is the mean over the step's targets, before its update."""
        after = gemm_gflops(self.task)
        peaks = {"peak_bytes": peak_bytes(self.task.device), "resident_bytes": process_peak_bytes()}
        self.say(seconds=self.seconds, loss=loss, gflops=(self.before + after) / 2, **peaks)


def versions() -> dict[str, str]:
    """Of what this contestant runs on."""
    installed = {name: name in sys.modules for name in PACKAGES}
    return {name: metadata.version(name) for name, used in installed.items() if used}


def gemm_gflops(task: Task) -> float:
    """GFLOP/s of the model's own large product, forward and backward shape, in fp32."""
    import torch

    tokens, ins, outs = task.gemm
    x, weight = torch.ones(tokens, ins, device=task.device), torch.ones(outs, ins, device=task.device)
    y = x @ weight.T
    synchronise(task.device)
    began, products = time.perf_counter(), 0
    while time.perf_counter() - began < GEMM_SECONDS:
        torch.mm(x, weight.T, out=y)
        torch.mm(y, weight, out=x)
        synchronise(task.device)
        products += 2
        x.fill_(1.0)  # the values would grow without end
    return products * 2 * tokens * ins * outs / (time.perf_counter() - began) / 1e9


def synchronise(device: str) -> None:
    """Wait until an accelerator has done what it was given."""
    if device != "cpu":
        import torch

        torch.accelerator.synchronize()


def peak_bytes(device: str) -> int:
    """Peak of the whole process (CPU: resident; CUDA: reserved by the allocator); with MLX what its counter says."""
    if "mlx.core" in sys.modules:
        return int(sys.modules["mlx.core"].get_peak_memory())
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_reserved())
    return process_peak_bytes()


def process_peak_bytes() -> int:
    """The most that this process held in memory at once."""
    if sys.platform == "linux":
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def labels_of(row: Row) -> list[int]:
    ids, targets = row
    return [token if target else IGNORED for token, target in zip(ids, targets, strict=True)]
