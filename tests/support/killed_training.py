"""Training that kills itself: `killed_training.py MOMENT COUNT FLAGS...` dies by SIGKILL at the COUNT-th MOMENT."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from lorafit import atomic
from lorafit.cli.app import main
from lorafit.engines.torch.engine import TorchEngine
from lorafit.engines.torch.optimizer import TorchOptimizer
from lorafit.training import loop, worker

MOMENTS: dict[str, tuple[Any, str]] = {
    "opening": (worker, "_open_engine"),
    "step": (TorchEngine, "_clip"),  # after the gradients, before the update
    "update": (loop, "_step_done"),  # after the update, before the event
    "saving": (TorchOptimizer, "save"),  # after the adapter, before the optimizer state is written
    "sealing": (atomic, "_swap_in"),  # after all files are written, before the folder is renamed
    "pruning": (loop, "prune"),
    "finishing": (loop, "_finish"),
}


def deadly(real: Callable[..., Any], count: int) -> Callable[..., Any]:
    """Return a function that calls `real`, and kills the process at its `count`-th call."""
    calls: list[int] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    return call


if __name__ == "__main__":
    owner, name = MOMENTS[sys.argv[1]]
    setattr(owner, name, deadly(getattr(owner, name), int(sys.argv[2])))
    sys.exit(main(["train", "--no_supervisor", *sys.argv[3:]]))
