"""A training that kills itself: `python dying.py MOMENT COUNT FLAGS...` sends SIGKILL at the COUNT-th time of MOMENT."""

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
    "step": (TorchEngine, "_clip"),  # gradients are there, the update is not
    "update": (loop, "_step_done"),  # the update is there, the event is not
    "saving": (TorchOptimizer, "save"),  # the adapter is written, the moments are not
    "sealing": (atomic, "_swap_in"),  # all is written, the name is not
    "pruning": (loop, "prune"),
    "finishing": (loop, "_finish"),
}


def deadly(real: Callable[..., Any], count: int) -> Callable[..., Any]:
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
