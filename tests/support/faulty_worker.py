"""A worker process with built-in faults: `faulty_worker.py FAULTS`, a JSON list of {"life", "step", "deed", "above"}.

`life`: number of the worker process in which the fault occurs (1: the first, 0: each). `step`: step number, or "start".
`deed`: key in `deeds()`. `above`: only in micro-batches of more tokens than this.
Only model and data are fake. The worker, the loop, checkpoints, events and pipes are real. No tensor library is imported.
"""

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # this file is run as a script
from lorafit import registry
from lorafit.config import TrainConfig
from lorafit.data.micro_batch import MicroBatch
from lorafit.data.thoughts import ThoughtUse
from lorafit.engines.base import OutOfMemory, Setup, StepResult
from lorafit.engines.fake import FakeEngine
from lorafit.errors import EngineError
from lorafit.events import Event, Stage
from lorafit.hardware import detect
from lorafit.run_folders.origins import Origins
from lorafit.training import child, worker
from lorafit.training.resume import Interrupted, plan_for
from support.plans import make_plan, make_samples

METAL = "Error: command buffer exited with error status."
WATCHDOG = "Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)"


def deeds() -> dict[str, Any]:
    """Return the faults by name: functions that kill, block or fail the process."""
    return {
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "exit": lambda: os._exit(7),
        "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
        "hang": lambda: time.sleep(600),
        "metal": lambda: print(METAL, file=sys.stderr, flush=True) or time.sleep(600),  # type: ignore[func-returns-value]
        "watchdog": lambda: print(WATCHDOG, file=sys.stderr, flush=True) or os.abort(),  # type: ignore[func-returns-value]
        "cuda": lambda: raise_(EngineError("The device failed.", found="CUDA error: unspecified launch failure")),
        "error": lambda: raise_(EngineError("It cannot be.", where="here", found="this", fix="Do that.")),
        "memory": lambda: raise_(OutOfMemory("Out of memory.")),
        "move": lambda: move_and_die(Path(os.environ["OUTPUT"])),
        "bug": lambda: raise_(ZeroDivisionError("of our own")),
    }


def raise_(error: Exception) -> None:
    """Raise `error`."""
    raise error


def move_and_die(output: Path) -> None:
    """Rename the only run in `output` to "moved" and kill this process."""
    (folder,) = output.iterdir()
    folder.rename(folder.with_name("moved"))
    os.kill(os.getpid(), signal.SIGKILL)


class FaultyEngine(FakeEngine):
    """The fake engine with faults. Each step takes $SECONDS longer."""

    life = 0
    faults: Sequence[dict[str, Any]] = ()

    @classmethod
    def open(cls, setup: Setup) -> "FaultyEngine":
        return cls(setup)

    def step(self, step: int, micro_batches: Sequence[MicroBatch], total_targets: int, lr: float) -> StepResult:
        time.sleep(float(os.environ.get("SECONDS", "0")))
        for micro in micro_batches:
            for fault in self.faults:
                now = fault["step"] == step and fault.get("life", 1) in (self.life, 0)
                if now and micro.num_tokens > fault.get("above", 0):
                    deeds()[fault["deed"]]()
        return super().step(step, micro_batches, total_targets, lr)


def get_ready(config: TrainConfig, old: Interrupted | None, _ranks: object = None) -> Generator[Event, None, Any]:
    """Replace worker._get_ready: prepare a run on random samples. Faults of step "start" occur here."""
    for fault in FaultyEngine.faults:
        if (fault["step"], fault.get("life", 1)) == ("start", FaultyEngine.life):
            deeds()[fault["deed"]]()
    yield Stage(text="Getting ready")
    changes = {"token_budget": config.token_budget} if config.token_budget else {}
    plan = make_plan(
        steps=config.max_steps or 10, save_steps=config.save_steps or 0, valid_samples=8, eval_steps=4, **changes
    )
    machine, samples = detect.detect_machine(), make_samples(40)
    if old is not None:
        plan = plan_for(old.run, machine, config, plan)
    data = SimpleNamespace(train=samples[:32], valid=samples[32:], notes=[], rejects=[], valid_conversations=[],
                           thoughts=ThoughtUse())  # fmt: skip
    model = SimpleNamespace(folder=Path(), name="fake")
    spec = SimpleNamespace(model_type="fake")
    facts: dict[str, Any] = {
        "config": config.model_copy(update={"no_preflight": True}),
        "machine": machine,
        "model": model,
        "origins": Origins(),
    }
    facts |= {"spec": spec, "tokenizer": SimpleNamespace(template_is_ours=False), "data": data, "plan": plan}
    lacking = {f.name: None for f in fields(worker.PreparedRun) if f.default is MISSING}
    return worker.PreparedRun(**{**lacking, **facts})


def lives(folder: Path) -> int:
    """Return the number of workers so far, this one included. The count is stored in `folder`."""
    file = folder / "lives"
    count = int(file.read_text()) + 1 if file.exists() else 1
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(str(count))
    return count


def work(config: TrainConfig, link: Any) -> Any:
    """Train as the real worker does, and count this worker."""
    FaultyEngine.life = lives(Path(config.output_dir).with_name("count"))
    return worker.train_in_process(config, link)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    FaultyEngine.faults = json.loads(sys.argv[1])
    registry.ENGINES["torch"] = registry.Entry("faulty:FaultyEngine", "")
    sys.modules["faulty"] = sys.modules["__main__"]
    worker._get_ready = get_ready
    worker._plan_events = lambda ready: iter(())  # type: ignore[assignment]
    worker.compare_with_plan = lambda training, *_expected, **_whole: training  # type: ignore[assignment]
    worker.add_chat_files = lambda *args: None  # type: ignore[assignment]
    worker.write_rejects = lambda *args: None  # type: ignore[assignment]
    sys.exit(child.main(work))
