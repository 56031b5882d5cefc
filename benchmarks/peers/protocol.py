"""The protocol between a contestant and the race, as JSON lines.

    python -m peers.NAME TASK.json

The contestant reports that it is ready; the race sends "step"; the contestant reports what the step cost. This module
needs only torch and numpy, since a contestant may have a Python of its own. A matmul at the model's shapes is timed
before and after each step, so that load on a shared machine can be divided out of the step's time.
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

GEMM_SECONDS = 0.3  # per measurement; the noise is about 2% on two cores
IGNORED = -100  # label of a token without loss, in transformers and in libraries built on it

PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "llamafactory", "unsloth", "lorafit", "mlx", "mlx_lm")

Row = tuple[list[int], list[bool]]  # token ids, and which of them are in the loss


@dataclass(frozen=True)
class Task:
    """The task: the same fields for every contestant, and `options` of its own."""

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
        """Return the task in the file that the first command-line argument names."""
        return cls(**json.loads(Path(sys.argv[1]).read_text("utf-8")))

    def rows(self) -> list[list[Row]]:
        """Return the rows of each step."""
        arrays = np.load(self.samples)
        starts = [0, *arrays["ends"].tolist()]

        def row(index: int) -> Row:
            part = slice(starts[index], starts[index + 1])
            return arrays["ids"][part].tolist(), arrays["targets"][part].tolist()

        return [[row(index) for index in step] for step in self.steps]


class Referee:
    """The contestant's end of the protocol. The output of libraries is redirected to stderr."""

    def __init__(self, task: Task) -> None:
        self.task, self.began, self.seconds, self.before = task, 0.0, 0.0, 0.0
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._ready = False

    def say(self, **facts: Any) -> None:
        """Send one JSON line to the race."""
        print(json.dumps(facts), file=self._out, flush=True)

    def begin(self) -> None:
        """Wait for "step", then start the clock; on the first call, report first that loading is complete.

        Exit the process if the race sends anything else or closes the pipe.
        """
        if not self._ready:
            self._ready = True
            self.say(versions=versions(), peak_bytes=peak_bytes(self.task.device))
        if sys.stdin.readline().strip() != "step":
            os._exit(0)  # skips clean-up: nothing is kept, and some trainers would save now
        self.before = gemm_gflops(self.task)
        synchronise(self.task.device)
        self.began = time.perf_counter()

    def stop(self) -> None:
        """Stop the clock once the device has finished."""
        synchronise(self.task.device)
        self.seconds = time.perf_counter() - self.began

    def report(self, loss: float) -> None:
        """Send what the step cost; `loss` is the mean over the step's targets, before its update."""
        after = gemm_gflops(self.task)
        peaks = {"peak_bytes": peak_bytes(self.task.device), "resident_bytes": process_peak_bytes()}
        self.say(seconds=self.seconds, loss=loss, gflops=(self.before + after) / 2, **peaks)


def versions() -> dict[str, str]:
    """Return the versions of the packages that this contestant has imported."""
    installed = {name: name in sys.modules for name in PACKAGES}
    return {name: metadata.version(name) for name, used in installed.items() if used}


def gemm_gflops(task: Task) -> float:
    """Return the fp32 GFLOP/s of the model's large matmul, in its forward and its backward shape."""
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
        x.fill_(1.0)  # keeps the values from growing without bound
    return products * 2 * tokens * ins * outs / (time.perf_counter() - began) / 1e9


def synchronise(device: str) -> None:
    """Wait until the accelerator has finished its work; return at once on a CPU."""
    if device != "cpu":
        import torch

        torch.accelerator.synchronize()


def peak_bytes(device: str) -> int:
    """Return peak memory in bytes: MLX's own counter if MLX is loaded, else that of the process.

    On a CPU this is the resident peak; on CUDA, the peak that the allocator reserved.
    """
    if "mlx.core" in sys.modules:
        return int(sys.modules["mlx.core"].get_peak_memory())
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_reserved())
    return process_peak_bytes()


def process_peak_bytes() -> int:
    """Return the peak resident memory of this process in bytes."""
    if sys.platform == "linux":
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def labels_of(row: Row) -> list[int]:
    """Return the row's token IDs with IGNORED in place of tokens without loss."""
    ids, targets = row
    return [token if target else IGNORED for token, target in zip(ids, targets, strict=True)]
